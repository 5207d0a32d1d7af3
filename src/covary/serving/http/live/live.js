"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg", WIDTH = 1000, EVERY = 2000;
  const count = (value) => value.toLocaleString("en");
  const percent = (share) => `${Number((100 * share).toPrecision(share >= 0.1 ? 3 : 2))} %`;
  const milliseconds = (s) => (s === null ? "–" : s < 1 ? `${(1000 * s).toPrecision(s < 0.01 ? 2 : 3)} ms` : `${s.toPrecision(3)} s`);
  const clock = (s) => new Date(1000 * s).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

  // Text only ever enters the page as text: ids come from clients.
  const make = (tag, css, text, ...children) => {
    const node = document.createElement(tag);
    if (css) node.className = css;
    if (text !== undefined && text !== null) node.textContent = text;
    node.append(...children);
    return node;
  };
  const shape = (tag, attributes, text) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const image = (uri, size, alt) => {
    const node = make("img");
    if (/^data:image\/png;base64,[A-Za-z0-9+/=]+$/.test(uri ?? "")) node.src = uri;
    node.width = node.height = size;
    node.alt = alt;
    return node;
  };

  // ---- charts: shapes in a stretched frame, text at percentages, so that text keeps its size at every width ------
  const chart = (height, told, frame, texts) => {
    const svg = shape("svg", { class: "chart", width: "100%", height: height + 24, role: "img", "aria-label": told });
    const inner = shape("svg", { y: 6, width: "100%", height, viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none", class: "open" });
    inner.append(...frame);
    for (const [y, text] of texts.across ?? []) {
      svg.append(shape("line", { class: "grid", x1: 0, x2: "100%", y1: y + 6, y2: y + 6 }));
      svg.append(shape("text", { class: "tick", x: "100%", y: y + 10, dx: 6 }, text));
    }
    svg.append(inner);
    for (const [share, text, anchor] of texts.below ?? [])
      svg.append(shape("text", { class: "tick", x: `${100 * share}%`, y: height + 22, "text-anchor": anchor ?? "middle" }, text));
    return svg;
  };
  const path = (css, d) => shape("path", { class: css, d });
  const level = (y) => shape("line", { class: "grid dashed", x1: 0, x2: WIDTH, y1: y, y2: y });
  const bars = (heights, width, height, gap) =>
    heights.map((h, i) => (h > 0 ? `M${(i * width + gap).toFixed(1)} ${height}V${(height - Math.max(1, h)).toFixed(1)}H${((i + 1) * width - gap).toFixed(1)}V${height}Z` : "")).join("");

  const drawRates = (data) => {
    const height = 130, rates = data.rates, least = 45;
    const padded = [...Array(Math.max(0, least - rates.length)).fill(null), ...rates];
    const width = WIDTH / padded.length;
    const shares = padded.map((r) => (r && r[1] ? r[2] / r[1] : null));
    const top = Math.min(1, Math.max(4 * data.fpr, 1.15 * Math.max(0, ...shares.filter((s) => s !== null))));
    const most = Math.max(1, ...padded.map((r) => (r ? r[1] : 0)));
    let line = "", dots = "", pen = false;
    shares.forEach((share, i) => {
      if (share === null) { pen = false; return; }
      const x = ((i + 0.5) * width).toFixed(1), y = (height * (1 - share / top)).toFixed(1);
      line += `${pen ? "L" : "M"}${x} ${y}`;
      if (!pen && (i + 1 === shares.length || shares[i + 1] === null)) dots += `M${x} ${y}h0`;
      pen = true;
    });
    const frame = [
      path("count", bars(padded.map((r) => (r ? (0.8 * height * r[1]) / most : 0)), width, height, 0.08 * width)),
      level(height * (1 - data.fpr / top)), path("line", line), path("dots", dots),
    ];
    const across = [[0, percent(top)], [height, "0 %"]];
    if (data.fpr < 0.85 * top && data.fpr > 0.12 * top) across.push([height * (1 - data.fpr / top), percent(data.fpr)]);
    const ago = Math.round((padded.length * data.bin_seconds) / 60);
    const below = [[0, `${ago} min ago`, "start"], [1, "now", "end"]];
    byId("rate-plot").replaceChildren(chart(height, "Flag rate over time", frame, { across, below }));
  };

  const drawStream = (data) => {
    const height = 170, { path: points, log10_alarm: alarm, n } = data.stream;
    const values = points.map((p) => p[1]);
    const high = Math.max(alarm * 1.25, ...values), low = Math.min(-1, ...values);
    const y = (value) => height * (1 - (value - low) / (high - low)), last = Math.max(1, n);
    const line = points.map(([at, value], i) => `${i ? "L" : "M"}${((WIDTH * at) / last).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    const frame = [level(y(alarm)), path(`line${values.some((v) => v >= alarm) ? "" : " calm"}`, line)];
    const step = Math.max(1, Math.ceil((high - low) / 5)), across = [];
    for (let power = Math.ceil(low / step) * step; power <= high; power += step)
      across.push([y(power), power === 0 ? "1" : Math.abs(power) <= 3 ? count(10 ** power) : `10${[...String(power)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("")}`]);
    const below = [[0, "input 0", "start"], [1, `input ${count(n)}`, "end"]];
    byId("stream-plot").replaceChildren(chart(height, "Evidence against the stream being like the calibration set", frame, { across, below }));
    byId("stream-told").textContent = `Evidence, to one, that the stream is not like the ${count(data.calibration)} calibration samples. If it is, the dashed line is never reached with probability ${percent(1 - data.stream.level)}, however long one watches.`;
  };

  const drawP = (data) => {
    const height = 170, counts = data.p_histogram, sum = counts.reduce((a, b) => a + b, 0), even = sum / counts.length;
    const top = Math.max(2 * even, 1.1 * Math.max(...counts), 1), width = WIDTH / counts.length;
    const tall = counts.map((c) => (height * c) / top);
    const odd = tall.map((h, i) => (i === 0 ? h : 0)), rest = tall.map((h, i) => (i ? h : 0));
    const frame = [path("calm", bars(rest, width, height, 2)), path("flagged", bars(odd, width, height, 2)), level(height * (1 - even / top))];
    const below = [[0, "0", "start"], [0.5, "0.5"], [1, "1", "end"]];
    byId("p-plot").replaceChildren(chart(height, "Histogram of p-values", frame, { across: [[height, ""]], below }));
  };

  // ---- the latest flagged --------------------------------------------------------------------------------------
  const card = (entry) => {
    const tiles = make("div", "tiles");
    if (entry.picture) tiles.append(image(entry.picture, 64, "the input"));
    const near = entry.near.filter((w) => w.picture);
    if (entry.picture && near.length) tiles.append(make("span", "near"), make("div", "small", null, ...near.map((w) => image(w.picture, 48, `trusted: ${w.predicted}`))));
    const head = make("p", "head", null, make("b", null, `Answered ${entry.predicted}`), make("span", "id", entry.id));
    const told = [];
    if (entry.raised_by) told.push(`Raised by ${entry.raised_by}${entry.layer ? `, least explained in ${entry.layer}` : ""}.`);
    if (entry.unexplained !== null) told.push(`Trusted samples leave ${percent(entry.unexplained)} of its direction unexplained.`);
    if (entry.near.length) told.push(`Nearest trusted: ${entry.near.map((w) => w.predicted).join(", ")}.`);
    if (entry.score === null) told.push("Network or gradient is not finite on it.");
    const numbers = make("div", "numbers", null, make("b", null, `p = ${entry.p_value.toPrecision(2)}`));
    numbers.append(make("br"), `score ${entry.score === null ? "∞" : entry.score.toFixed(2)}`, make("br"), clock(entry.time));
    return make("li", null, null, tiles, make("div", "what", null, head, make("p", null, told.join(" "))), numbers);
  };

  let drawn = "";
  const show = (data) => {
    const recent = data.rates.reduce(([n, f], r) => [n + r[1], f + r[2]], [0, 0]);
    const minutes = Math.max(1, Math.round((data.now - data.rates[0][0]) / 60));
    byId("headline").textContent = `${count(recent[1])} of ${count(recent[0])} inputs flagged`;
    byId("subline").textContent = `in the last ${minutes === 1 ? "minute" : `${minutes} minutes`}, at a false-alarm rate of ${percent(data.fpr)}`;
    byId("chance").textContent = recent[0] ? `If every input were like the trusted ones, about ${count(Math.round(recent[0] * data.fpr))} would be flagged by chance; there are ${count(recent[1])}.` : "Waiting for inputs.";
    const { account, log10_capital: capital } = data.stream;
    const facts = [
      ["Share flagged", recent[0] ? percent(recent[1] / recent[0]) : "–"],
      ["Inputs since the start", count(data.judged)],
      ["Answers, median", milliseconds(data.latency.p50)],
      ["Answers, 99 of 100 within", milliseconds(data.latency.p99)],
      ["Stream evidence", capital < 6 ? `${count(Number((10 ** capital).toPrecision(2)))} : 1` : `10^${capital.toFixed(0)} : 1`],
      ...(data.window ? [[`Flagged by the last ${count(data.window.size)} together`, count(data.window.flagged)]] : []),
      ["Stream alarm", account.alarm ? "raised" : "quiet"],
    ];
    byId("figures").replaceChildren(...facts.map(([name, value]) => make("div", account.alarm && name === "Stream alarm" ? "alarm" : "", null, make("dt", null, name), make("dd", null, value))));
    byId("account").textContent = account.text;
    byId("account").classList.toggle("alarmed", account.alarm);
    drawRates(data); drawStream(data); drawP(data);
    const key = data.cards.map((c) => c.id + c.time).join();
    if (key !== drawn) {
      drawn = key;
      byId("latest").replaceChildren(...data.cards.map(card));
    }
    byId("flagged-lead").textContent = data.cards.length ? "The input, and beside it the trusted samples that come nearest." : "None since the start.";
    byId("footer").textContent = `Model ${data.name}, served since ${new Date(1000 * data.started).toLocaleString("en-GB")}. This page asks for new figures every two seconds.`;
    document.title = `${count(recent[1])} flagged · ${data.name} · covary live`;
  };

  // ---- asking ----------------------------------------------------------------------------------------------------
  let key = sessionStorage.getItem("covary-key") ?? "", timer = 0;
  const pulse = (text, lost) => { byId("pulse").textContent = text; byId("pulse").classList.toggle("lost", lost); };
  const ask = async () => {
    clearTimeout(timer);
    try {
      const answer = await fetch("live.json", { headers: key ? { authorization: `Bearer ${key}` } : {}, cache: "no-store" });
      const locked = answer.status === 401;
      byId("lock").hidden = !locked;
      byId("wrong").hidden = !(locked && key);
      byId("content").hidden = locked;
      if (locked) { pulse("locked", true); return; }
      if (!answer.ok) throw new Error(answer.statusText);
      show(await answer.json());
      pulse("live", false);
    } catch {
      pulse("no answer; trying again", true);
    }
    timer = setTimeout(ask, EVERY);
  };
  byId("lock").addEventListener("submit", (event) => {
    event.preventDefault();
    key = byId("key").value;
    sessionStorage.setItem("covary-key", key);
    ask();
  });

  // ---- light and dark --------------------------------------------------------------------------------------------
  const prefers = matchMedia("(prefers-color-scheme: dark)"), root = document.documentElement;
  const dark = () => (root.dataset.theme ?? (prefers.matches ? "dark" : "light")) === "dark";
  const label = () => { byId("theme").textContent = dark() ? "Light" : "Dark"; };
  byId("theme").addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  prefers.addEventListener("change", label);
  label();
  ask();
})();
