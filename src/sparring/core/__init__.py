"""The shared basis of all packages: types, errors, random numbers, names on disk, model modes, checks and schedules."""
