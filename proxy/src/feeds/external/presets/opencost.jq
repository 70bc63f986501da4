# OpenCost's allocation API: what one CPU core costs for an hour, everything included, by cluster (or whatever
# `aggregate` of the URL says).
if .code == 200 then . else error("OpenCost says: \(.message // .code)") end
| [ .data[] | select(. != null) | to_entries[]
    | select(.key | startswith("__") | not)
    | select((.value.cpuCoreHours // 0) > 0)
    | { zone: .key, value: (.value.totalCost / .value.cpuCoreHours), unit: "/h" } ]
