// One user with matrix-js-sdk, driven over standard input and output, a JSON object a line.
//
//   in:   {"id": 1, "do": "say", "room": "!…", "text": "…"}
//   out:  {"id": 1, "result": …}  or  {"id": 1, "error": "…"}
//   out:  {"seen": "event" | "receipt" | "typing" | "membership" | "replaced", …}   as it happens
//
// The SDK expects a newer Node than Debian's 18 and the common 20: what they lack is given here. Keys stay in memory.

import { webcrypto } from "node:crypto";
import { createInterface } from "node:readline";
import encryption from "matrix-encrypt-attachment";

globalThis.crypto ??= webcrypto;
Promise.withResolvers ??= function () {
    let resolve, reject;
    const promise = new this((yes, no) => { resolve = yes; reject = no; });
    return { promise, resolve, reject };
};

const sdk = await import("matrix-js-sdk");
const { decodeRecoveryKey } = await import("matrix-js-sdk/lib/crypto-api/index.js");

const quiet = () => {};
console.log = console.info = console.debug = console.trace = quiet;
console.warn = console.error;
const logger = {
    trace: quiet, debug: quiet, info: quiet, warn: quiet, error: console.error, getChild: () => logger,
};

const tell = (message) => process.stdout.write(JSON.stringify(message) + "\n");

let client = null;
let password = null;
let recoveryKey = null;

const cryptoCallbacks = {
    getSecretStorageKey: async ({ keys }) => (recoveryKey ? [Object.keys(keys)[0], recoveryKey] : null),
    cacheSecretStorageKey: (_id, _info, key) => { recoveryKey = key; },
};

const passwordAuth = (makeRequest) => makeRequest({
    type: "m.login.password",
    identifier: { type: "m.id.user", user: client.getUserId() },
    password,
});

const threaded = (root) => ({
    rel_type: "m.thread", event_id: root, is_falling_back: true, "m.in_reply_to": { event_id: root },
});

function describe(event) {
    return {
        id: event.getId(),
        room: event.getRoomId(),
        sender: event.getSender(),
        type: event.getType(),
        content: event.getOriginalContent(),
        encrypted: event.isEncrypted(),
        unreadable: event.isDecryptionFailure() || event.isBeingDecrypted() || event.getType() === "m.room.encrypted",
    };
}

const tellEvent = (event) => {
    if (!event.isSending() && !event.isBeingDecrypted()) tell({ seen: "event", ...describe(event) });
};

function watch() {
    client.on(sdk.RoomEvent.Timeline, tellEvent);
    client.on(sdk.RoomEvent.LocalEchoUpdated, tellEvent);
    client.on(sdk.MatrixEventEvent.Decrypted, tellEvent);
    client.on(sdk.MatrixEventEvent.Replaced, (event) =>
        tell({ seen: "replaced", id: event.getId(), room: event.getRoomId(), text: event.getContent().body ?? null }));
    client.on(sdk.RoomEvent.Receipt, (event, room) => {
        for (const [id, kinds] of Object.entries(event.getContent()))
            for (const users of Object.values(kinds))
                for (const user of Object.keys(users)) tell({ seen: "receipt", room: room.roomId, id, user });
    });
    client.on(sdk.RoomMemberEvent.Typing, (_event, member) =>
        tell({ seen: "typing", room: member.roomId, user: member.userId, typing: member.typing }));
    client.on(sdk.RoomStateEvent.Members, (_event, _state, member) =>
        tell({ seen: "membership", room: member.roomId, user: member.userId, membership: member.membership }));
}

const synced = () => new Promise((resolve, reject) => {
    client.on(sdk.ClientEvent.Sync, (state, _previous, data) => {
        if (state === "PREPARED") resolve();
        if (state === "ERROR") reject(data.error);
    });
});

const send = async (room, content, thread = null) =>
    (await client.sendEvent(room, thread, "m.room.message", content)).event_id;

const actions = {
    async login({ url, user, password: secret }) {
        password = secret;
        const answer = await sdk.createClient({ baseUrl: url, logger }).loginRequest({
            type: "m.login.password", identifier: { type: "m.id.user", user }, password,
            initial_device_display_name: "js",
        });
        client = sdk.createClient({
            baseUrl: url, userId: answer.user_id, deviceId: answer.device_id, accessToken: answer.access_token,
            cryptoCallbacks, logger,
        });
        await client.initRustCrypto({ useIndexedDB: false });
        watch();
        const ready = synced();
        await client.startClient({ initialSyncLimit: 30, threadSupport: true, pollTimeout: 10000 });
        await ready;
        return { user: answer.user_id, device: answer.device_id };
    },

    async create_encrypted_room({ name, invite }) {
        const answer = await client.createRoom({
            preset: "private_chat", name, invite,
            initial_state: [
                { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } },
            ],
        });
        return answer.room_id;
    },

    join: async ({ room }) => (await client.joinRoom(room)).roomId,
    say: ({ room, text }) => send(room, { msgtype: "m.text", body: text }),
    in_thread: ({ room, root, text }) =>
        send(room, { msgtype: "m.text", body: text, "m.relates_to": threaded(root) }, root),
    reply: ({ room, to, text }) =>
        send(room, { msgtype: "m.text", body: text, "m.relates_to": { "m.in_reply_to": { event_id: to } } }),
    edit: ({ room, target, text }) => send(room, {
        msgtype: "m.text", body: `* ${text}`, "m.new_content": { msgtype: "m.text", body: text },
        "m.relates_to": { rel_type: "m.replace", event_id: target },
    }),
    react: async ({ room, target, key }) => (await client.sendEvent(room, "m.reaction", {
        "m.relates_to": { rel_type: "m.annotation", event_id: target, key },
    })).event_id,
    read: ({ room, target }) => client.sendReadReceipt(client.getRoom(room).findEventById(target)),
    typing: ({ room, typing }) => client.sendTyping(room, typing, 20000),

    async send_image({ room, name, data }) {
        const plain = new Uint8Array(Buffer.from(data, "base64"));
        const { data: encrypted, info } = await encryption.encryptAttachment(plain.buffer);
        const { content_uri: url } = await client.uploadContent(
            new Blob([encrypted]), { type: "application/octet-stream", includeFilename: false });
        return send(room, {
            msgtype: "m.image", body: name, info: { mimetype: "image/png", size: plain.length }, file: { ...info, url },
        });
    },

    async open_image({ file }) {
        const url = client.mxcUrlToHttp(file.url, undefined, undefined, undefined, false, true, true);
        const answer = await fetch(url, { headers: { Authorization: `Bearer ${client.getAccessToken()}` } });
        if (!answer.ok) throw new Error(`${url}: ${answer.status} ${await answer.text()}`);
        const plain = await encryption.decryptAttachment(await answer.arrayBuffer(), file);
        return Buffer.from(plain).toString("base64");
    },

    // Cross-signing, secret storage and key backup, as a client sets them up at the first login.
    async keep_keys() {
        const crypto = client.getCrypto();
        let made = null;
        await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: passwordAuth });
        await crypto.bootstrapSecretStorage({
            setupNewSecretStorage: true,
            setupNewKeyBackup: true,
            createSecretStorageKey: async () => (made = await crypto.createRecoveryKeyFromPassphrase()),
        });
        return made.encodedPrivateKey;
    },

    // How many of this device's room keys there are, and how many the server keeps.
    async kept_keys() {
        const { count } = await client.http.authedRequest("GET", "/room_keys/version");
        return { here: (await client.getCrypto().exportRoomKeys()).length, kept: count };
    },

    async recover_keys({ key }) {
        recoveryKey = decodeRecoveryKey(key);
        const crypto = client.getCrypto();
        if (!await crypto.userHasCrossSigningKeys(client.getUserId(), true)) throw new Error("no identity");
        await crypto.bootstrapCrossSigning({});
        await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
        await crypto.checkKeyBackupAndEnable();
        const { imported } = await crypto.restoreKeyBackup();
        const status = await crypto.getDeviceVerificationStatus(client.getUserId(), client.getDeviceId());
        return { imported, verified: status.signedByOwner };
    },

    async read_back({ room }) {
        await client.scrollback(client.getRoom(room), 100);
        const found = new Map();
        const take = (event) => found.set(event.getId(), event);
        client.getRoom(room).getLiveTimeline().getEvents().forEach(take);
        client.getRoom(room).getThreads().forEach((thread) => thread.events.forEach(take));
        await Promise.all([...found.values()].map((event) => client.decryptEventIfNeeded(event)));
        return [...found.values()].map(describe);
    },

    thread_length: ({ room, root }) => client.getRoom(room).getThread(root)?.length ?? 0,
    shown: ({ room, target }) => client.getRoom(room).findEventById(target)?.getContent().body ?? null,

    async logout() {
        await client.logout(true);
        client.removeAllListeners();
        client = recoveryKey = null;
    },
};

process.on("unhandledRejection", (reason) => console.error("unhandled:", reason));

createInterface({ input: process.stdin }).on("line", async (line) => {
    const { id, do: name, ...rest } = JSON.parse(line);
    try {
        tell({ id, result: (await actions[name](rest)) ?? null });
    } catch (error) {
        tell({ id, error: `${error?.stack ?? error}` });
    }
}).on("close", () => process.exit(0));
