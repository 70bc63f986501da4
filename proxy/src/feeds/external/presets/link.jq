# The replication link: its round trip time, and what was lost of the last packets.
[ to_entries[] | .key as $zone | .value
  | { zone: $zone, name: "rtt", value: .rtt_ms, unit: "ms" },
    (select(.loss != null) | { zone: $zone, name: "loss", value: .loss, unit: "ratio" }) ]
