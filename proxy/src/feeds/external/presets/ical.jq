# iCalendar: what is not cancelled; maintenance notices say more in X-MAINTNOTE- properties.
[ .events[]
  | .properties as $own
  | ($own["X-MAINTNOTE-STATUS"] // .status // "" | if type == "array" then .[0] else . end | ascii_upcase) as $status
  | select($status != "CANCELLED" and $status != "COMPLETED")
  | { event: "maintenance", id: .uid, title: (.summary // $own["X-MAINTNOTE-MAINTENANCE-ID"] // .uid // "maintenance"),
      starts: .starts, ends: .ends, under_way: ($status == "IN-PROCESS"), severity: ($own["X-MAINTNOTE-IMPACT"] | if type == "array" then .[0] else . end),
      zone: ([ $own["X-MAINTNOTE-OBJECT-ID"] | if type == "array" then .[] else . end ]
             + [ .location | if . then splits(", *") else empty end ] | map(select(. != null))) } ]
