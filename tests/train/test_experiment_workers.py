"""The processes of an experiment end with the one that started them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
WAITING = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from train.experiment.pool import _worker

context = multiprocessing.get_context("forkserver")
with ProcessPoolExecutor(1, mp_context=context, initializer=_worker) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600).result()
"""


def runs(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_job_ends_when_its_experiment_is_killed():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", WAITING], env=environment, stdout=subprocess.PIPE) as started:
        worker = int(started.stdout.readline())
        assert runs(worker)
        started.kill()
    end = time.monotonic() + 20
    while runs(worker) and time.monotonic() < end:
        time.sleep(0.1)
    left = runs(worker)
    if left:
        psutil.Process(worker).kill()
    assert not left
