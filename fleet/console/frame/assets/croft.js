// What pages do beyond forms and links. Nothing here is needed to use the console,
// but for passkeys.
"use strict";
(() => {
  const all = (what, from = document) => [...from.querySelectorAll(what)];
  const each = (what, from, act) => all(what, from).forEach(act);

  // Forms are sent once.
  document.addEventListener("submit", (e) => {
    const form = e.target;
    if (form.dataset.sent) return e.preventDefault();
    if (form.method === "post" && !e.defaultPrevented) {
      form.dataset.sent = "yes";
      setTimeout(() => delete form.dataset.sent, 4000);
    }
  });

  // Times in the reader's zone.
  const clock = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
  const localize = (root) => {
    each("time[data-local]", root, (t) => (t.textContent = clock.format(new Date(t.dateTime))));
    each("time[title]", root, (t) => (t.title = clock.format(new Date(t.dateTime))));
    each("input[data-zone]", root, (i) => {
      if (!i.value) i.value = Intl.DateTimeFormat().resolvedOptions().timeZone;
    });
  };

  // Copying.
  document.addEventListener("click", async (e) => {
    const button = e.target.closest("[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(button.dataset.copy);
    const was = button.textContent;
    button.textContent = button.dataset.copied;
    setTimeout(() => (button.textContent = was), 2000);
  });

  // Passkeys: <form data-passkey="create|login" data-then="/path">, with the form's
  // token in it and an element data-trouble for what goes wrong.
  const ask = async (path, body, token) => {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json", "X-Croft-Form-Token": token },
      body: JSON.stringify(body),
    });
    const said = await answer.json();
    if (!answer.ok) throw new Error([said.message, said.remedy].filter(Boolean).join(": ") || answer.statusText);
    return said;
  };
  const passkey = async (form) => {
    const token = form.elements.form_token.value;
    const login = form.dataset.passkey === "login";
    const path = login ? "/auth/passkey/login" : "/auth/passkey";
    const name = form.elements.name ? form.elements.name.value : "";
    const { data } = await ask(path + "/begin", { name }, token);
    const options = data.options.publicKey || data.options;
    const credential = login
      ? await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options) })
      : await navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options) });
    await ask(path + "/finish", { ceremony: data.ceremony, name: form.dataset.label || name, response: credential.toJSON() }, token);
    location.assign(form.dataset.then || "/");
  };
  document.addEventListener("submit", async (e) => {
    const form = e.target;
    if (!form.dataset.passkey) return;
    e.preventDefault();
    const trouble = form.querySelector("[data-trouble]");
    const button = form.querySelector("button");
    const say = (text) => {
      trouble.hidden = !text;
      trouble.textContent = text;
    };
    if (!window.PublicKeyCredential || !PublicKeyCredential.parseCreationOptionsFromJSON) return say(trouble.dataset.missing);
    say("");
    button.disabled = true;
    try {
      await passkey(form);
    } catch (err) {
      say(err.name === "NotAllowedError" || err.name === "AbortError" ? trouble.dataset.aborted : err.name === "InvalidStateError" ? trouble.dataset.known : err.message);
    } finally {
      button.disabled = false;
    }
  });

  // Claiming: the code comes behind the '#' of the address, which no server sees. It
  // is taken out of there at once, and kept for a quarter of an hour in case somebody
  // has to sign in first.
  const claimKey = "croft-claim";
  const claim = (form) => {
    const code = decodeURIComponent(location.hash.slice(1));
    if (code) {
      history.replaceState(null, "", location.pathname);
      localStorage.setItem(claimKey, JSON.stringify({ code, at: Date.now() }));
    }
    let kept = null;
    try {
      kept = JSON.parse(localStorage.getItem(claimKey));
    } catch {}
    if (!kept || Date.now() - kept.at > 15 * 60e3) return localStorage.removeItem(claimKey);
    if (form.dataset.claim === "wait") {
      each("[data-claim-known]", document, (e) => (e.hidden = false));
      each("[data-claim-unknown]", document, (e) => (e.hidden = true));
      return;
    }
    localStorage.removeItem(claimKey);
    form.elements.code.value = kept.code;
    form.requestSubmit();
  };
  const scanned = () => each("[data-claim]", document, claim);
  window.addEventListener("hashchange", scanned);

  // Charts.
  const k = 1000;
  const bytes = (v) => {
    if (Math.abs(v) < k) return v.toFixed(0) + " B";
    let u = -1;
    for (; Math.abs(v) >= 999.5 && u < 4; u++) v /= k;
    return +v.toPrecision(3) + " " + "kMGTP"[u] + "B";
  };
  const units = {
    share: (v) => +(v * 100).toPrecision(3) + " %",
    bytes,
    rate: (v) => bytes(v) + "/s",
    celsius: (v) => +v.toPrecision(3) + " °C",
    number: (v) => v.toLocaleString("en-GB", { maximumFractionDigits: 2 }),
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const tall = 150;
  const charts = new Map();
  const draw = async (figure) => {
    const plot = figure.querySelector(".plot");
    const summary = figure.querySelector(".summary");
    let data;
    try {
      const answer = await fetch(figure.dataset.chart, { headers: { Accept: "application/json" } });
      if (!answer.ok) throw new Error(answer.statusText);
      data = await answer.json();
    } catch {
      return; // the table is there
    }
    summary.textContent = data.summary;
    const some = data.lines.some((l) => l.values.some((v) => v !== null));
    figure.classList.toggle("blank", !some);
    figure.classList.add("ready");
    charts.get(figure)?.plot?.destroy();
    plot.replaceChildren();
    if (!some) return;
    const format = units[data.unit] || units.number;
    const font = "12px " + getComputedStyle(document.body).fontFamily;
    const axis = { stroke: colour("--muted"), font, grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const u = new uPlot(
      {
        width: plot.clientWidth,
        height: tall,
        padding: [10, 8, 0, 0],
        cursor: { y: false, points: { size: 7 } },
        legend: { show: data.lines.length > 1, live: false },
        hooks: {
          setCursor: [
            (u) => {
              const at = u.cursor.idx;
              summary.textContent = at == null ? data.summary : clock.format(new Date(data.times[at] * 1000)) + " – " + data.lines.map((l) => `${l.name}: ${l.values[at] === null ? "–" : format(l.values[at])}`).join(", ");
            },
          ],
        },
        scales: { y: { range: (_, low, high) => (data.unit === "celsius" ? [Math.min(20, low), Math.max(90, high)] : [0, data.unit === "share" ? 1 : high * 1.1 || 1]) } },
        axes: [
          { ...axis, size: 26, space: 70, values: [[3600, "{HH}:{mm}", null, null, null, null, null, null, 1], [60, "{HH}:{mm}", null, null, null, null, null, null, 1]] },
          { ...axis, size: 62, space: 30, values: (_, ticks) => ticks.map((v) => (v === null ? "" : format(v))) },
        ],
        series: [
          {},
          ...data.lines.map((l, i) => ({
            label: l.name,
            stroke: colour(`--chart-${(i % 4) + 1}`),
            width: 2,
            dash: [[], [6, 4], [2, 3], [8, 3, 2, 3]][i % 4],
            fill: data.lines.length === 1 ? colour("--chart-fill") : undefined,
            points: { show: false },
            spanGaps: false,
          })),
        ],
      },
      [data.times, ...data.lines.map((l) => l.values)],
      plot,
    );
    charts.set(figure, { plot: u });
  };
  const drawAll = () => {
    for (const [figure, c] of charts) if (!figure.isConnected) c.plot?.destroy(), charts.delete(figure);
    each("[data-chart]", document, draw);
  };
  let width = innerWidth;
  addEventListener("resize", () => {
    if (width === innerWidth) return; // a phone's bars came or went
    width = innerWidth;
    for (const [figure, c] of charts) c.plot?.setSize({ width: figure.querySelector(".plot").clientWidth, height: tall });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  // Live updates: elements with data-live and an id are fetched anew when the server
  // says that something changed, and each minute; not while somebody uses them.
  const refresh = () => {
    if (document.hidden || !window.htmx) return;
    const still = (e) => !(e.contains(document.activeElement) && document.activeElement.matches("input, select, textarea")) && !e.querySelector("details[open]");
    const ids = all("[data-live]").filter(still).map((e) => "#" + e.id);
    if (ids.length) htmx.ajax("GET", location.pathname + location.search, { target: ids[0], select: ids[0], swap: "outerHTML", selectOOB: ids.slice(1).join(",") });
  };
  const live = () => {
    const url = document.body.dataset.liveUrl;
    if (!url) return;
    let missed = false;
    let poll = 0;
    const source = new EventSource(url);
    source.addEventListener("changed", refresh);
    source.onopen = () => {
      clearInterval(poll);
      poll = 0;
      if (missed) refresh();
      missed = false;
    };
    source.onerror = () => {
      missed = true;
      if (source.readyState === EventSource.CLOSED && !poll) poll = setInterval(refresh, 30e3); // it was refused
    };
    setInterval(refresh, 60e3);
    document.addEventListener("visibilitychange", () => !document.hidden && refresh());
    addEventListener("pagehide", () => source.close());
    addEventListener("pageshow", (e) => e.persisted && location.reload());
  };

  document.addEventListener("htmx:load", (e) => localize(e.detail.elt));
  localize(document);
  drawAll();
  setInterval(() => !document.hidden && drawAll(), 60e3);
  // A box that was just claimed has its first readings within moments.
  setInterval(() => !document.hidden && each("[data-chart].blank", document, draw), 10e3);
  scanned();
  live();
})();
