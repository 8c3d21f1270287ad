"""Training of the gates, from the resolved settings to the final circuits."""
