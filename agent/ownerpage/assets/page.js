// Keeps the page true without moving it: asks for it again, and puts in what is
// new. Without this script the page reloads itself.
"use strict";
const silent = document.getElementById("silent");
async function again() {
  if (!document.hidden) {
    try {
      const answer = await fetch("/", {signal: AbortSignal.timeout(5000)});
      if (!answer.ok) throw new Error(answer.status);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const now = document.getElementById("live"), next = page.getElementById("live");
      for (const d of now.querySelectorAll("details[open]")) page.getElementById(d.id)?.setAttribute("open", "");
      if (now.innerHTML !== next.innerHTML) now.replaceWith(next);
      document.title = page.title;
      silent.hidden = true;
    } catch {
      silent.hidden = false;
    }
  }
  setTimeout(again, 10000);
}
setTimeout(again, 10000);
