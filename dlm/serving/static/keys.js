/** Asking for the key of a server that wants one. */

import { storeKey } from "./api.js";
import { find } from "./dom.js";

/** Ask for a key and keep it for this tab. @returns {Promise<boolean>} false where none was given. */
export function askForKey(reason) {
  const [dialog, form, input] = [find("key-dialog"), find("key-form"), find("key")];
  if (dialog.open) return Promise.resolve(false);
  find("key-reason").textContent = reason;
  input.value = "";
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    let given = false;
    const submit = () => {
      given = true;
      storeKey(input.value.trim());
    };
    const cancel = () => dialog.close();
    form.addEventListener("submit", submit, { once: true });
    find("key-cancel").addEventListener("click", cancel, { once: true });
    dialog.addEventListener(
      "close",
      () => {
        form.removeEventListener("submit", submit);
        find("key-cancel").removeEventListener("click", cancel);
        input.value = "";
        resolve(given);
      },
      { once: true },
    );
  });
}
