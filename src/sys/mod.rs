//! The shell: everything that touches the operating system. It drives the cores and holds no decisions.
