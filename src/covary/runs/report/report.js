"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);

  // ---- light and dark -------------------------------------------------------------------------------------------
  const theme = byId("theme");
  const wide = matchMedia("(prefers-color-scheme: dark)");
  const recall = () => { try { return localStorage.getItem("covary-theme"); } catch { return null; } };
  const isDark = () => (document.documentElement.dataset.theme || (wide.matches ? "dark" : "light")) === "dark";
  const label = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  if (recall() === "dark" || recall() === "light") document.documentElement.dataset.theme = recall();
  theme.hidden = false;
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("covary-theme", document.documentElement.dataset.theme); } catch { /* private window */ }
    label();
  });
  wide.addEventListener("change", label);
  label();

  // ---- evidence: one panel at a time ----------------------------------------------------------------------------
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  const select = (tab, focus) => {
    for (const other of tabs) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      byId(other.getAttribute("aria-controls")).hidden = !chosen;
    }
    if (focus) tab.focus({ preventScroll: true });
    // Scrolls the list alone: scrollIntoView would move the page as well.
    const list = tab.parentElement;
    const box = tab.getBoundingClientRect(), frame = list.getBoundingClientRect();
    if (box.top < frame.top) list.scrollTop -= frame.top - box.top;
    else if (box.bottom > frame.bottom) list.scrollTop += box.bottom - frame.bottom;
    if (box.left < frame.left) list.scrollLeft -= frame.left - box.left;
    else if (box.right > frame.right) list.scrollLeft += box.right - frame.right;
  };
  const moves = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, PageDown: 5, PageUp: -5, Home: -Infinity, End: Infinity };
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => select(tab, false));
    tab.addEventListener("keydown", (event) => {
      if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      select(tabs[Math.min(tabs.length - 1, Math.max(0, i + moves[event.key]))], true);
    });
  });

  // ---- layer profiles: read one layer with the pointer or the arrow keys ----------------------------------------
  const signed = (value) => {
    if (value === null || value === undefined) return "–";
    const text = Math.abs(value) < 100 ? value.toFixed(2) : Math.round(value).toLocaleString("en");
    return text === "-0.00" ? "0.00" : text.replace("-", "\u2212");
  };
  for (const profile of document.querySelectorAll(".profile")) {
    const family = profile.dataset.family;
    const values = data.values[Number(profile.dataset.panel)][family], ranges = data.ranges[family] || [];
    const chart = profile.querySelector(".chart"), cursor = profile.querySelector(".cursor"), readout = profile.querySelector(".readout");
    const resting = readout.textContent;
    let at = -1;
    const read = (i) => {
      at = Math.min(values.length - 1, Math.max(0, i));
      const x = 1000 * (at + 0.5) / values.length, range = ranges[at];
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      const trusted = range ? ` (trusted ${signed(range[0])} to ${signed(range[2])})` : "";
      readout.textContent = `${data.layers[family][at] || "layer number " + (at + 1)}: ${signed(values[at])}${trusted}`;
    };
    const rest = () => {
      at = -1;
      cursor.setAttribute("x1", -9);
      cursor.setAttribute("x2", -9);
      readout.textContent = resting;
    };
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      read(Math.floor((event.clientX - box.left) / box.width * values.length));
    });
    chart.addEventListener("pointerleave", rest);
    profile.addEventListener("blur", rest);
    profile.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      read(at < 0 && step === -1 ? values.length - 1 : at + step);
    });
  }

  // ---- the table of inputs --------------------------------------------------------------------------------------
  const table = byId("table");
  if (table) {
    const columns = data.columns, n = columns.id.length, kinds = {};
    for (const head of data.heads) kinds[head.key] = head.kind;
    const className = (value) => data.classes[String(value)] ?? "";
    const whole = (value) => {
      const rounded = Math.round(100 * value);
      return (rounded === 0 && value > 0 ? "<\u00a01" : rounded === 100 && value < 1 ? ">\u00a099" : rounded) + "\u00a0%";
    };
    const significant = (value) => value >= 1e-4 || value === 0 ? String(Number(value.toPrecision(2))) : value.toExponential(1);
    const write = {
      count: (value) => value.toLocaleString("en"), number: signed, p: significant, share: whole, class: className,
      verdict: (value) => value ? "flagged" : "passed", truth: (value) => ["clean", "anomalous"][value] ?? "",
      text: (value) => value.replaceAll(";", "; "), id: (value) => value,
    };
    const text = (key, i) => columns[key][i] === null ? "" : write[kinds[key]](columns[key][i]);
    const tests = {
      all: () => true,
      flagged: (i) => columns.flagged[i] === 1,
      passed: (i) => columns.flagged[i] === 0,
      missed: (i) => columns.flagged[i] === 0 && columns.truth[i] === 1,
      false: (i) => columns.flagged[i] === 1 && columns.truth[i] === 0,
    };
    const searched = ["id", "predicted", "y", "raised_by", "least_explained_layer", "explained_by"].filter((key) => key in kinds);
    let haystack = null;
    const state = { key: "score", down: true, page: 0 };
    let shown = [];

    const collator = new Intl.Collator("en", { numeric: true });
    const compare = (a, b) => {
      // Classes sort by what is read; a missing value comes last in either direction.
      const of = (i) => kinds[state.key] === "class" ? text(state.key, i) : columns[state.key][i];
      const x = of(a), y = of(b);
      const gone = (value) => value === null || value === "";
      if (gone(x) || gone(y)) return gone(x) - gone(y) || a - b;
      const order = typeof x === "string" ? collator.compare(x, y) : x - y;
      return (state.down ? -order : order) || a - b;
    };
    const choose = () => {
      const words = byId("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
      if (words.length && !haystack) {
        haystack = Array.from({ length: n }, (_, i) => searched.map((key) => text(key, i)).join("\n").toLowerCase());
      }
      const test = tests[byId("only").value];
      shown = [];
      for (let i = 0; i < n; i++) {
        if (test(i) && words.every((word) => haystack[i].includes(word))) shown.push(i);
      }
      shown.sort(compare);
      state.page = 0;
      draw();
    };
    const draw = () => {
      const size = Number(byId("size").value), pages = Math.max(1, Math.ceil(shown.length / size));
      state.page = Math.min(pages - 1, Math.max(0, state.page));
      const first = state.page * size, rows = shown.slice(first, first + size);
      const body = document.createElement("tbody");
      for (const i of rows) {
        const tr = body.insertRow();
        for (const { key, kind } of data.heads) {
          const td = tr.insertCell(), content = text(key, i);
          td.className = "k-" + kind + (kind === "verdict" && columns.flagged[i] ? " flagged" : "");
          if (key === "id" && columns.panel[i] >= 0) {
            const link = document.createElement("button");
            link.type = "button";
            link.textContent = content;
            link.title = `Evidence for ${content}`;
            link.dataset.panel = columns.panel[i];
            td.append(link);
          } else if (kind === "id" || kind === "text" || kind === "class") {
            const isolated = document.createElement("bdi");
            isolated.textContent = isolated.title = content;
            td.append(isolated);
          } else td.textContent = content;
        }
      }
      if (!rows.length) {
        const td = body.insertRow().insertCell();
        td.colSpan = data.heads.length;
        td.className = "empty";
        td.textContent = "No input matches.";
      }
      table.tBodies[0].replaceWith(body);
      for (const th of table.tHead.rows[0].cells) {
        if (th.dataset.key === state.key) th.setAttribute("aria-sort", state.down ? "descending" : "ascending");
        else th.removeAttribute("aria-sort");
      }
      const span = rows.length ? `${(first + 1).toLocaleString("en")}–${(first + rows.length).toLocaleString("en")} of ` : "";
      byId("status").textContent = span + shown.length.toLocaleString("en");
      byId("previous").disabled = state.page === 0;
      byId("next").disabled = state.page >= pages - 1;
    };
    for (const th of table.tHead.rows[0].cells) {
      th.firstElementChild.addEventListener("click", () => {
        const numeric = !["text", "id", "class", "count", "p"].includes(kinds[th.dataset.key]);
        state.down = state.key === th.dataset.key ? !state.down : numeric;
        state.key = th.dataset.key;
        choose();
      });
    }
    byId("search").addEventListener("input", choose);
    byId("only").addEventListener("change", choose);
    byId("size").addEventListener("change", () => { state.page = 0; draw(); });
    byId("previous").addEventListener("click", () => { state.page--; draw(); });
    byId("next").addEventListener("click", () => { state.page++; draw(); });
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    table.addEventListener("click", (event) => {
      const panel = event.target.dataset?.panel;
      if (panel === undefined) return;
      const tab = byId(`tab-${panel}`);
      select(tab, true);
      byId("evidence").scrollIntoView();
    });
    byId("controls").hidden = false;
    choose();
  }

  // ---- paper: what is folded away is printed too ----------------------------------------------------------------
  const folded = [...document.querySelectorAll("details")];
  let closed = [];
  addEventListener("beforeprint", () => { closed = folded.filter((d) => !d.open); closed.forEach((d) => { d.open = true; }); });
  addEventListener("afterprint", () => { closed.forEach((d) => { d.open = false; }); closed = []; });
})();
