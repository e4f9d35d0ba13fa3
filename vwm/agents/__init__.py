"""What acts in a world: planners over simulators, and the goals that they plan for."""
