"""The ops: one file has one op. `cc_kernels` exports their functions; here `ops.swiglu` is the module."""
