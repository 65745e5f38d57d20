/** The dialog that asks for the server's key. */

import { storeKey, storedKey } from "./api.js";
import { find } from "./dom.js";

/** Ask for a key and keep it for this tab. @returns {Promise<boolean>} false if cancelled. */
export function askForKey() {
  const [dialog, form, input] = [find("key-dialog"), find("key-form"), find("key")];
  if (dialog.open) return Promise.resolve(false);
  const given = storedKey() !== "";
  find("key-reason").textContent = given
    ? "The key you entered is not the right one."
    : "Enter the key the server was started with.";
  input.value = "";
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    let submitted = false;
    const submit = () => {
      submitted = true;
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
        resolve(submitted);
      },
      { once: true },
    );
  });
}
