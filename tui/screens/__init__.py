"""The views of the dashboard and its two dialogs, one a file."""
