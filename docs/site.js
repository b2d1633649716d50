// Tables that the theme lets scroll sideways: reached by the keyboard, too, and said to be what they are.
addEventListener("load", () => {
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((box, i) => {
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", `Table ${i + 1}`);
  });
});
