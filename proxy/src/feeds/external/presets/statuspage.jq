# Statuspage's scheduled-maintenances.json: what is planned or under way, by the names of the components.
[ .scheduled_maintenances[]
  | select(.status != "completed")
  | { event: "maintenance", id: .id, title: .name, starts: .scheduled_for, ends: .scheduled_until,
      under_way: (.status == "in_progress" or .status == "verifying"),
      severity: .impact, zone: [ .components[]?.name ] } ]
