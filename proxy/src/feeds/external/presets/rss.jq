# RSS and Atom: every entry that has a date.
[ .entries[]
  | (.published // .updated) as $at
  | select($at != null)
  | { event: "notice", id: .id, title: (.title // .summary // .id), starts: $at, ends: $at } ]
