/* Applies the chosen theme before the page is drawn; default: the system's. */
"use strict";

(function () {
  const NEXT = { auto: "light", light: "dark", dark: "auto" };
  const WORDS = { auto: "system", light: "light", dark: "dark" };

  function stored() {
    try {
      return localStorage.getItem("dlm-theme") in NEXT ? localStorage.getItem("dlm-theme") : "auto";
    } catch {
      return "auto"; // storage may be disabled; the choice then lasts until the page is closed
    }
  }

  let theme = stored();

  function apply() {
    if (theme === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) {
      button.title = `Theme: ${WORDS[theme]}`;
      button.setAttribute("aria-label", `Theme: ${WORDS[theme]}. Change to ${WORDS[NEXT[theme]]}`);
    }
  }

  apply();
  addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", () => {
      theme = NEXT[theme];
      try {
        localStorage.setItem("dlm-theme", theme);
      } catch (error) {
        console.warn("cannot store the theme:", error.message);
      }
      apply();
    });
  });
})();
