// Exchanges the link's token for a cookie, loads the window, and says so when either cannot be.

import init, { Page } from "./lathe.js";

const canvas = document.getElementById("lathe");
const notice = document.getElementById("notice");

function say(message, hint = "") {
  canvas.hidden = true;
  notice.hidden = false;
  document.getElementById("message").textContent = message;
  document.getElementById("hint").textContent = hint;
}

// True unless the server refused it. Without a token in the address there is a cookie already, or the server will say so.
async function enter() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return true;
  // Out of the history before anything else: it is used up either way.
  history.replaceState(null, "", location.pathname);
  const answer = await fetch("enter", { method: "POST", body: token, credentials: "same-origin" });
  if (answer.ok) return true;
  const error = await answer.json();
  say(error.message, error.hint);
  return false;
}

async function start() {
  if (!(await enter())) return;
  const probe = document.createElement("canvas");
  if (!probe.getContext("webgl2") && !probe.getContext("webgl")) {
    say(
      "This browser draws no WebGL, which Lathe's window needs",
      "Turn on hardware acceleration in its settings, or use another browser; the command line does everything too",
    );
    return;
  }
  await init({ module_or_path: "lathe_bg.wasm" });
  const page = new Page();
  canvas.hidden = false;
  await page.open(canvas);
  notice.hidden = true;
  canvas.focus();
  const watch = setInterval(() => {
    const panic = page.panic();
    if (panic) {
      clearInterval(watch);
      say("Lathe's window has a bug and stopped; reload the page. Runs go on meanwhile", panic);
    }
  }, 1000);
}

start().catch((error) => say("Lathe's window cannot be loaded", String(error)));
