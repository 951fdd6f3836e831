"""Stand-ins for kernels, which write down how they are compiled and started."""

from cc_kernels.launch import empty, launch, prepared, unit_stride


class Compiled:
    """Stands for a kernel that Triton compiled, and writes down how it is started."""

    def __init__(self):
        self.starts = []

    def __getitem__(self, grid):
        return lambda *values: self.starts.append((grid, values))


class Kernel:
    """Stands for a kernel under `triton.jit`; counts how often Triton is asked to specialise."""

    arg_names = ("x_ptr", "absent_ptr", "out_ptr", "size", "BLOCK")

    def __init__(self, compiles=True):
        self.compiled = []
        self.asked = 0
        self.compiles = compiles

    def __getitem__(self, grid):
        def run(**arguments):
            self.asked += 1
            self.compiled.append(Compiled())
            return self.compiled[-1] if self.compiles else None

        return run


def launcher_of(kernel, runs=None):
    """A launcher of one kernel with one result; `runs` collects how often its Python ran on real tensors."""

    @prepared
    def launcher(x, block=4):
        if runs is not None and x.device.type != "meta":
            runs.append(x)
        out = empty(x, x.shape)
        launch(kernel, (3,), BLOCK=block, size=x.shape[0], x_ptr=unit_stride(x), absent_ptr=None, out_ptr=out)
        return out

    return launcher
