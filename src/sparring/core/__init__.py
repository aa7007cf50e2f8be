"""What every room shares: types, errors, random numbers, names on disk, modes of a model, checks, schedules."""
