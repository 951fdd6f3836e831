"""The controlled comparison of plain fine-tuning and CC-Tuning: equal data, steps and seeds.

    python -m train.experiment train/configs/experiment_cpu.yaml --out runs/experiment

| module | |
|---|---|
| `settings` | the config: what is compared |
| `data` | rows and splits, from CLDR or from files prepared elsewhere |
| `job` | one condition with one seed: train, fit, evaluate |
| `pool` | all of them, several at a time, resumable |
| `statistics`, `report`, `plots` | what came out, with intervals |
"""
