# Traces: how many hops, since when the way has been this one, and where it changed.
[ to_entries[] | .key as $zone | .value
  | { zone: $zone, name: "hops", value: .hops },
    { zone: $zone, name: "route_age", value: .age_s, unit: "s" },
    (select(.change != null) | { event: "route change", title: .change, zone: $zone, starts: .since }) ]
