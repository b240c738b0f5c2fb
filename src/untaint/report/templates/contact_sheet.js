"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const boxes = [...document.querySelectorAll("input[data-i]")];
  try {
    const out = new Set(JSON.parse(localStorage.getItem(data.store) || "[]"));
    for (const box of boxes) box.checked = !out.has(Number(box.dataset.i));
  } catch { /* all stay ticked */ }
  const show = () => {
    const out = boxes.filter((box) => !box.checked).map((box) => Number(box.dataset.i));
    try { localStorage.setItem(data.store, JSON.stringify(out)); } catch { /* the ticks then last until the page is closed */ }
    document.getElementById("left").textContent = `${boxes.length - out.length} of ${boxes.length} ticked`;
  };
  document.addEventListener("change", show);
  document.getElementById("all").addEventListener("click", () => { for (const box of boxes) box.checked = true; show(); });
  document.getElementById("save").addEventListener("click", () => {
    const text = boxes.filter((box) => box.checked).map((box) => `${data.lines[Number(box.dataset.i)]}\n`).join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = "probes.txt";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  show();
})();
