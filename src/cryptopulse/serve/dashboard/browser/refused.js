// Trade ids that were received but refused, according to the newest quarantined messages: fetching them again would not
// help.

// The ids in the messages: product → (id → message). `messages`: {partition_key, body, …}; a body may be anything, and
// truncated.
export function refusedIds(messages) {
  const found = new Map();
  for (const message of messages) {
    const symbol = message.partition_key || /"product_id"\s*:\s*"([^"]+)"/.exec(message.body)?.[1];
    if (!symbol) continue;
    if (!found.has(symbol)) found.set(symbol, new Map());
    for (const [, id] of message.body.matchAll(/"trade_id"\s*:\s*"?(\d+)\b/g)) found.get(symbol).set(Number(id), message);
  }
  return found;
}

// The ids of `ids` (id → message) from `first` to `last`, in order.
export function refusedWithin(ids, first, last) {
  return [...(ids?.keys() ?? [])].filter((id) => id >= first && id <= last).sort((a, b) => a - b);
}
