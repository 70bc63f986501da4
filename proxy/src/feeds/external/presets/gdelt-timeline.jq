# GDELT DOC 2.0 in mode timelinevol (or timelinetone): the newest complete point of each series.
[ .timeline[]
  | .series as $series
  | (.data | if length > 1 then .[-2] else .[-1] end)
  | select(. != null)
  | { name: $series, value: .value, at: .date } ]
