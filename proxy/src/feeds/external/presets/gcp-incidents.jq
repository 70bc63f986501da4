# Google Cloud's incidents.json: what has not ended, or ended within a day, by the ids of the regions.
[ .[]
  | (.end // null) as $end
  | select($end == null or (($end | sub("\\.[0-9]+"; "") | sub("[+]00:00$"; "Z") | fromdateiso8601) > $now - 86400))
  | { event: (if .status_impact == "SERVICE_INFORMATION" then "information" else "outage" end),
      id: .id, title: "\(.service_name): \(.external_desc)", starts: .begin, ends: $end, severity: .severity,
      zone: [ (.currently_affected_locations[]?, .previously_affected_locations[]?) | .id ] } ]
