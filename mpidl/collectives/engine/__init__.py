"""What gives schedules a meaning: execution, simulation, selection."""
