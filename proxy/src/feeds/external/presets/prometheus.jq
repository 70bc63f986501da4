# The answer of Prometheus to an instant query: one value for each series, its zone in the label `zone`.
if .status == "success" then .data else error("Prometheus says: \(.error // .status)") end
| if .resultType == "scalar" then [ { value: (.result[1] | tonumber), at: .result[0] } ]
  elif .resultType == "vector" then
    if (.result | length) == 0 then error("the query has no result") else . end
    | [ .result[] | { zone: .metric.zone, value: (.value[1] | tonumber), at: .value[0] } ]
  else error("the query gives a \(.resultType); an instant vector or a scalar is needed") end
