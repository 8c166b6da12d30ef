"""What the dashboard knows: plain state, folded from messages, with no widget in sight."""
