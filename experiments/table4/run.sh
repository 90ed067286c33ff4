#!/usr/bin/env bash
# Table 4 in small: networks of experiments/systems, trained on by DeepCluster and by ODC. Started again, it goes on.
#   bash experiments/table4/run.sh /path/to/images [epochs] [seeds] [jobs] [starts]
set -euo pipefail
images=$(realpath "$1") epochs=${2:-10} seeds=${3:-"0 1 2"} jobs=${4:-2} starts=${5:-"col jig rot dc"}
cd "$(dirname "$0")/../.."
odc=(python -m odc_lightning run.root=runs/table4 logger.wandb.mode=disabled data.num_workers=0)
same=(data=folder "data.root=$images" data.image_size=32 backbone.width=8 "trainer.max_epochs=$epochs"
  "schedule.milestones=[$((epochs * 4 / 5))]" callbacks.measure.knn=false "callbacks.measure.every_n_epochs=$epochs")

finetune() {  # start, target, seed
  local name=$1_$2_$3 system=$1
  case $1 in col) system=colorization ;; jig) system=jigsaw ;; rot) system=rotation ;; esac
  "${odc[@]}" "experiment=finetune_$1_$2_cifar10" "run.name=$name" "seed=$3" "init.path=runs/systems/${system}_$3" "${same[@]}"
  "${odc[@]}" task=evaluate protocol=knn "init.path=runs/table4/$name"
  "${odc[@]}" task=evaluate protocol=linear_gap protocol.augment=none "init.path=runs/table4/$name"
}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
log=runs/table4/log && mkdir -p "$log"
for seed in $seeds; do
  for start in $starts; do
    for target in dc odc; do
      while (($(jobs -rp | wc -l) >= jobs)); do wait -n || true; done
      echo "$start $target $seed"
      finetune "$start" "$target" "$seed" >"$log/${start}_${target}_$seed.txt" 2>&1 &
    done
  done
done
wait
python experiments/table4/table.py runs
