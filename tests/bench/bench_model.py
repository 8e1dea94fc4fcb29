#!/usr/bin/env python3
"""LightGBM and XGBoost on the rows of examples/bench_model.rs: `make bench-model`.

Installs both from PyPI into target/bench/venv, fits each on one thread with as many trees of the
same depth and learning rate, and writes target/bench/model.json with Drover's figures beside.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BENCH = ROOT / "target" / "bench"
VENV = BENCH / "venv"
TREES, DEPTH, RATE = 100, 5, 0.1


def install():
    python = VENV / "bin" / "python"
    if not (VENV / ".ready").exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True)
        if made.returncode != 0:
            # Debian packs venv apart.
            subprocess.run(["apt-get", "install", "-y", "python3-venv"], check=True,
                           env=dict(os.environ, DEBIAN_FRONTEND="noninteractive"))
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "numpy", "scipy",
                        "lightgbm", "xgboost-cpu"], check=True)
        (VENV / ".ready").touch()
    return python


def read(name):
    import numpy
    data = numpy.genfromtxt(BENCH / name, delimiter=",", dtype="float32")
    return data[:, 1:], data[:, 0]


def r2(y, p):
    return float(1.0 - ((y - p) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def lightgbm(train, test):
    import lightgbm as lgb
    options = {"objective": "regression", "max_depth": DEPTH, "num_leaves": 2 ** DEPTH,
               "learning_rate": RATE, "num_threads": 1, "verbosity": -1}
    begin = time.process_time()
    model = lgb.train(options, lgb.Dataset(train[0], train[1]), num_boost_round=TREES)
    took = time.process_time() - begin
    return {"fit_cpu_s": took, "r2": r2(test[1], model.predict(test[0])), "version": lgb.__version__}


def xgboost(train, test):
    import xgboost as xgb
    options = {"objective": "reg:squarederror", "max_depth": DEPTH, "eta": RATE, "nthread": 1,
               "tree_method": "hist"}
    begin = time.process_time()
    model = xgb.train(options, xgb.DMatrix(train[0], train[1], nthread=1), num_boost_round=TREES)
    took = time.process_time() - begin
    predicted = model.predict(xgb.DMatrix(test[0], nthread=1))
    return {"fit_cpu_s": took, "r2": r2(test[1], predicted), "version": xgb.__version__}


def main():
    if "--inside" not in sys.argv:
        python = install()
        env = dict(os.environ, OMP_NUM_THREADS="1")
        os.execve(python, [str(python), __file__, "--inside"], env)
    report = json.loads((BENCH / "model-drover.json").read_text())
    train, test = read("model-train.csv"), read("model-test.csv")
    report["lightgbm"] = lightgbm(train, test)
    report["xgboost"] = xgboost(train, test)
    (BENCH / "model.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
