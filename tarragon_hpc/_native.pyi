"""Types of the compiled module; one section per source file of kernels/."""
