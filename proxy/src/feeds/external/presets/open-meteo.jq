# Open-Meteo's forecast: an object for one place, a list of them for several, in the order of the zones asked for.
(if type == "array" then . else [.] end) as $answers
| if ($answers | any(.error == true)) then error("Open-Meteo says: \($answers | map(.reason // empty) | join("; "))") else . end
| if ($answers | length) != ($zones | length)
  then error("\($answers | length) places answered for \($zones | length) zones") else . end
| [ range($zones | length) as $i
    | $answers[$i] as $answer
    | $answer.hourly.time as $times
    | range($times | length) as $hour
    | ($answer.hourly | to_entries[] | select(.key != "time")) as $series
    | $series.value[$hour] as $number
    | select($number != null)
    | { zone: $zones[$i].name, name: $series.key, value: $number,
        unit: $answer.hourly_units[$series.key], for: $times[$hour] } ]
