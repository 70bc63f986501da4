# Pings: the fastest answer, and what was lost of the last runs.
[ to_entries[] | .key as $zone | .value
  | (select(.rtt_ms != null) | { zone: $zone, name: "rtt", value: .rtt_ms, unit: "ms" }),
    (select(.loss != null) | { zone: $zone, name: "loss", value: .loss, unit: "ratio" }),
    (select(.tcp) | { event: "ping by TCP", title: .why, zone: $zone, starts: $now }) ]
