# Cloudflare Radar's annotations of outages, by country.
if .success == true then . else error("Cloudflare says: \(.errors | map(.message) | join("; "))") end
| [ .result.annotations[]
    | { event: "outage", id: .id, zone: .locations,
        title: ((.description // .outage.outageCause // "internet outage")
                + (if .scope then " (\(.scope))" else "" end)),
        starts: .startDate, ends: .endDate, severity: .outage.outageType } ]
