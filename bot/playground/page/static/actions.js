/** What the acting member can do; every call goes out in that member's name. */

import { call, CallError } from "./connection.js";

/** `notify(sentence, kind)` shows what went wrong; each action resolves to its result, or to `undefined` if refused. */
export function createActions(store, notify) {
  const guarded = async (method, path, body) => {
    try {
      return (await call(method, path, body)) ?? {};
    } catch (error) {
      if (!(error instanceof CallError)) throw error;
      notify(error.message, "error");
      return undefined;
    }
  };
  const user_id = () => store.actorId;

  return {
    send: (channel_id, content, reply_to = null, files = []) =>
      guarded("POST", "messages", {
        channel_id,
        author_id: user_id(),
        content,
        ...(reply_to ? { reply_to } : {}),
        ...(files.length ? { files } : {}),
      }),
    edit: (message, content) =>
      guarded("PATCH", `messages/${message.channel_id}/${message.id}`, { user_id: user_id(), content }),
    remove: (message) => guarded("DELETE", `messages/${message.channel_id}/${message.id}`, { user_id: user_id() }),
    react: (message, emoji) => {
      const mine = message.reactions.some((entry) => entry.emoji.name === emoji && entry.users.includes(user_id()));
      const body = { channel_id: message.channel_id, message_id: message.id, user_id: user_id(), emoji };
      return guarded(mine ? "DELETE" : "PUT", "reactions", body);
    },
    command: (name, { subcommand = null, options = {} } = {}) =>
      guarded("POST", "commands", {
        channel_id: store.channelId,
        user_id: user_id(),
        name,
        ...(subcommand ? { subcommand } : {}),
        options,
      }),
    /** What the bot offers in the "Apps" menu of a message. */
    menu: (message, name) =>
      guarded("POST", "commands", { channel_id: message.channel_id, user_id: user_id(), name, options: {}, target_id: message.id }),
    complete: (name, subcommand, option, value) =>
      guarded("POST", "autocomplete", { channel_id: store.channelId, user_id: user_id(), name, ...(subcommand ? { subcommand } : {}), option, value }),
    press: (message, custom_id, values = null) =>
      guarded("POST", "components", {
        channel_id: message.channel_id,
        message_id: message.id,
        user_id: user_id(),
        custom_id,
        ...(values ? { values } : {}),
      }),
    submitModal: (modal_id, values) => guarded("POST", "modals", { user_id: user_id(), modal_id, values }),
    loadSample: () => guarded("POST", "sample", {}),
    startOver: () => guarded("POST", "start-over", {}),
    tastes: () => guarded("GET", "tastes"),
    rehearse: (taste) => guarded("POST", "rehearsal", { taste }),
    cancelRehearsal: () => guarded("DELETE", "rehearsal"),
    imports: () => guarded("GET", "imports"),
    lookAtImport: (file, encoding) => guarded("POST", "imports/look", { user_id: user_id(), file, encoding }),
    takeIn: (token, rights, licence) => guarded("POST", "imports", { user_id: user_id(), token, rights, licence }),
    removeImport: (id) => guarded("DELETE", `imports/${id}`, { user_id: user_id() }),
    duels: () => guarded("GET", `duels?user_id=${encodeURIComponent(user_id())}`),
    vote: (duelId, choice) => guarded("POST", `duels/${encodeURIComponent(duelId)}/votes`, { user_id: user_id(), choice }),
  };
}
