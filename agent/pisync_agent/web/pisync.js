/*
 * PiSync for web pages: keeps what learners do in this browser until the agent of this device has it.
 *
 *   <script src="pisync.js"></script>
 *   <script>
 *     const pisync = new PiSync({ url: "http://127.0.0.1:8747", token: "…" });
 *     video.onended = () => pisync.record({ type: "video.watched", learner_id: "s-17", object_id: "math/g5/v03" });
 *   </script>
 *
 * record() resolves with the event's id once the event is kept in IndexedDB, so a closed tab or a stopped agent does
 * not lose it. It is sent with the same id until the agent has answered with its number, which makes repeats harmless,
 * and with the time of the call. Where the browser keeps nothing (`persistent` is false), record() resolves once the
 * agent has the event. docs/apps.md describes options and methods. One file, no build, ES2017.
 */
(function (root) {
  "use strict";

  const FIELDS = ["type", "learner_id", "object_id", "data", "id", "occurred_at"];
  const BATCH_EVENTS = 100;
  const BATCH_CHARS = 250000; // at most 750 kB in UTF-8; the agent takes 1 MiB
  const ANSWER_MS = 30000;
  const RETRY_BASE_MS = 1000;
  const RETRY_CAP_MS = 60000;
  const WAKING = ["online", "focus", "pageshow", "pagehide"];

  class PiSync {
    /** Options: url, token, name (of the database), onrefused(event, reason), onerror(error). */
    constructor(options) {
      const given = options || {};
      this._url = String(given.url || "http://127.0.0.1:8747").replace(/\/+$/, "") + "/v1/events";
      this._token = given.token || "";
      this._name = given.name || "pisync";
      this._onrefused = given.onrefused || ((event, reason) => console.error("PiSync: refused:", reason, event));
      this._onerror = given.onerror || (() => undefined);
      this._batch = BATCH_EVENTS;
      this._failures = 0;
      this._timer = null;
      this._sending = false;
      this._again = false;
      this._waiting = new Map();
      /** Whether events outlive this page; undefined until `ready` has resolved. */
      this.persistent = undefined;
      /** Resolves with `persistent`. */
      this.ready = this._open();
      this._wake = () => this.send();
      WAKING.forEach((name) => root.addEventListener(name, this._wake));
      root.document.addEventListener("visibilitychange", this._wake);
      this.ready.then(this._wake);
    }

    /** Keep an event; resolves with its id, rejects if it could not be kept. */
    async record(event) {
      const kept = prepare(event);
      await this.ready;
      const delivered = this.persistent ? null : this._delivery(kept.id);
      try {
        await this._store.add(kept.text);
      } catch (error) {
        throw new Error("the event is not kept: " + error);
      }
      this.send();
      await delivered;
      return kept.id;
    }

    /** Resolves with the number of events that the agent does not have yet. */
    async pending() {
      await this.ready;
      return this._store.count();
    }

    /** Resolves with the refused events: { event, reason }. They stay until `dismiss`. */
    async refused() {
      await this.ready;
      return (await this._store.refused()).map((row) => ({ event: JSON.parse(row.text), reason: row.reason }));
    }

    /** Forget a refused event, by its id. */
    async dismiss(id) {
      await this.ready;
      const rows = (await this._store.refused()).filter((row) => JSON.parse(row.text).id === id);
      await this._store.dismiss(rows.map((row) => row.n));
    }

    /** Send now what is pending, whatever the wait after a failure. */
    async send() {
      clearTimeout(this._timer);
      this._timer = null;
      if (this._sending) {
        this._again = true;
        return;
      }
      this._sending = true;
      try {
        await this.ready;
        do {
          this._again = false;
          await alone("pisync:" + this._name, () => this._sendAll());
        } while (this._again);
        this._failures = 0;
      } catch (error) {
        this._retry(error);
      } finally {
        this._sending = false;
      }
    }

    /** Stop sending, for a page that goes on without it. */
    close() {
      this._closed = true;
      clearTimeout(this._timer);
      WAKING.forEach((name) => root.removeEventListener(name, this._wake));
      root.document.removeEventListener("visibilitychange", this._wake);
    }

    async _open() {
      try {
        this._store = new BrowserStore(this._name);
        await this._store.count();
        this.persistent = true;
      } catch (error) {
        console.warn("PiSync: this browser keeps nothing (" + error + "): events are lost if the page is closed first");
        this._store = new MemoryStore();
        this.persistent = false;
      }
      return this.persistent;
    }

    _delivery(id) {
      return new Promise((resolve, reject) => this._waiting.set(id, { resolve, reject }));
    }

    _retry(error) {
      this._onerror(error);
      if (this._closed) return;
      const most = Math.min(RETRY_CAP_MS, RETRY_BASE_MS * Math.pow(2, ++this._failures));
      this._timer = setTimeout(this._wake, RETRY_BASE_MS + Math.random() * (most - RETRY_BASE_MS));
    }

    async _sendAll() {
      for (;;) {
        if (this._closed) return;
        const batch = await this._store.first(this._batch);
        if (!batch.length) return;
        await this._sendBatch(batch);
      }
    }

    /** Send one batch, and remove what the agent has. Throws if any of it has to be sent again. */
    async _sendBatch(batch) {
      const answer = await this._post('{"events":[' + batch.map((row) => row.text).join(",") + "]}");
      const results = answer.content.results;
      const unfit = answer.status === 400 || answer.status === 413;
      if (unfit && ours(answer.content) && batch.length > 1) {
        this._batch = Math.ceil(batch.length / 2);
        return;
      }
      if (unfit && ours(answer.content)) {
        await this._settle([], batch.map((row) => Object.assign({ reason: answer.content.detail }, row)));
        return;
      }
      if (!Array.isArray(results) || results.length !== batch.length) {
        throw new Error("the agent answered " + answer.status + ": " + (answer.content.detail || "not with numbers"));
      }
      const done = batch.filter((row, i) => Number.isInteger(results[i].seq));
      const refused = batch
        .map((row, i) => Object.assign({ result: results[i] }, row))
        .filter((row) => ours(row.result) && row.result.type.endsWith(":invalid_event"))
        .map((row) => ({ n: row.n, text: row.text, reason: row.result.detail }));
      await this._settle(done, refused);
      if (done.length + refused.length < batch.length) {
        throw new Error("the agent answered " + answer.status + ": " + answer.content.detail);
      }
    }

    async _settle(done, refused) {
      await this._store.settle(done, refused);
      done.forEach((row) => this._told(row, (waiter, id) => waiter.resolve(id)));
      refused.forEach((row) => {
        this._told(row, (waiter) => waiter.reject(new Error(row.reason)));
        this._onrefused(JSON.parse(row.text), row.reason);
      });
    }

    _told(row, tell) {
      const id = JSON.parse(row.text).id;
      if (this._waiting.has(id)) tell(this._waiting.get(id), id);
      this._waiting.delete(id);
    }

    async _post(body) {
      const headers = { "Content-Type": "application/json" };
      if (this._token) headers.Authorization = "Bearer " + this._token;
      const abort = root.AbortController ? new root.AbortController() : { signal: undefined, abort: () => undefined };
      const timer = setTimeout(() => abort.abort(), ANSWER_MS);
      try {
        const options = { method: "POST", body, headers, credentials: "omit", cache: "no-store", redirect: "error" };
        const answer = await root.fetch(this._url, Object.assign(options, { signal: abort.signal }));
        const content = await answer.json();
        return { status: answer.status, content: Object(content) };
      } finally {
        clearTimeout(timer);
      }
    }
  }

  /** Events in IndexedDB, shared by the tabs of an origin. A row is { n, text }, in the order of n. */
  class BrowserStore {
    constructor(name) {
      this._name = name;
      this._opened = null;
    }

    add(text) {
      return this._do("readwrite", (events) => events.add({ text }));
    }

    async first(count) {
      const rows = await this._do("readonly", (events) => events.getAll(null, count));
      return within(rows);
    }

    count() {
      return this._do("readonly", (events) => events.count());
    }

    refused() {
      return this._do("readonly", (events, refused) => refused.getAll());
    }

    settle(done, aside) {
      return this._do("readwrite", (events, refused) => {
        done.forEach((row) => events.delete(row.n));
        aside.forEach((row) => {
          events.delete(row.n);
          refused.put(row);
        });
      });
    }

    dismiss(numbers) {
      return this._do("readwrite", (events, refused) => numbers.forEach((n) => refused.delete(n)));
    }

    /** Resolves with the request's result once the transaction is on the disk. */
    async _do(mode, action) {
      const database = await this._database();
      return new Promise((resolve, reject) => {
        const transaction = database.transaction(["events", "refused"], mode, { durability: "strict" });
        const request = action(transaction.objectStore("events"), transaction.objectStore("refused"));
        transaction.oncomplete = () => resolve(request ? request.result : undefined);
        transaction.onabort = transaction.onerror = () => reject(transaction.error || new Error("aborted"));
      });
    }

    _database() {
      if (!this._opened) {
        this._opened = new Promise((resolve, reject) => {
          const opening = root.indexedDB.open(this._name, 1);
          opening.onupgradeneeded = () => {
            opening.result.createObjectStore("events", { keyPath: "n", autoIncrement: true });
            opening.result.createObjectStore("refused", { keyPath: "n" });
          };
          opening.onerror = () => reject(opening.error);
          opening.onsuccess = () => {
            const closed = () => {
              opening.result.close();
              this._opened = null;
            };
            opening.result.onclose = opening.result.onversionchange = closed;
            resolve(opening.result);
          };
        });
        this._opened.catch(() => (this._opened = null));
      }
      return this._opened;
    }
  }

  /** The same for a browser that keeps nothing. */
  class MemoryStore {
    constructor() {
      this._last = 0;
      this._events = [];
      this._refused = [];
    }

    async add(text) {
      this._events.push({ n: ++this._last, text });
    }

    async first(count) {
      return within(this._events.slice(0, count));
    }

    async count() {
      return this._events.length;
    }

    async refused() {
      return this._refused.slice();
    }

    async settle(done, aside) {
      const gone = new Set(done.concat(aside).map((row) => row.n));
      this._events = this._events.filter((row) => !gone.has(row.n));
      this._refused.push(...aside);
    }

    async dismiss(numbers) {
      this._refused = this._refused.filter((row) => !numbers.includes(row.n));
    }
  }

  /** Return an event's id and its JSON text, which is the same for every attempt to send it. */
  function prepare(event) {
    if (!event || typeof event.type !== "string") throw new TypeError('an event needs a type, such as "video.watched"');
    const unknown = Object.keys(event).filter((name) => !FIELDS.includes(name))[0];
    if (unknown) throw new TypeError("unknown field " + unknown + "; known fields: " + FIELDS.join(", "));
    const whole = Object.assign({}, event, { id: event.id || uuid(), occurred_at: event.occurred_at || new Date() });
    return { id: whole.id, text: JSON.stringify(whole) };
  }

  /** Return the first rows that make a request of bounded size, at least one. */
  function within(rows) {
    let chars = 0;
    return rows.filter((row, i) => (chars += row.text.length) <= BATCH_CHARS || i === 0);
  }

  function ours(content) {
    return typeof Object(content).type === "string" && content.type.startsWith("urn:pisync:problem:");
  }

  /** Run an action while no other tab of this origin runs one; repeats are harmless where a browser has no locks. */
  function alone(name, action) {
    const locks = root.navigator.locks;
    return locks ? locks.request(name, action) : action();
  }

  /** Return a random UUID; randomUUID is missing in older browsers, and in pages over plain HTTP. */
  function uuid() {
    if (root.crypto.randomUUID) return root.crypto.randomUUID();
    const bytes = root.crypto.getRandomValues(new Uint8Array(16));
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    const hex = Array.from(bytes, (byte) => (byte + 256).toString(16).slice(1)).join("");
    return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
  }

  root.PiSync = PiSync;
})(window);
