#!/usr/bin/env bash
# Every system on one folder of small images: equal network, epochs and batch. Started again, it goes on where it stopped.
#   bash experiments/systems/run.sh /path/to/images [epochs] [seeds] [jobs] [systems]
set -euo pipefail
images=$(realpath "$1") epochs=${2:-15} seeds=${3:-"0 1 2"} jobs=${4:-2}
systems=${5:-"random supervised rotation jigsaw colorization relative_location npid local_aggregation dc odc dc_reweight"}
cd "$(dirname "$0")/../.."
root=runs/systems
odc=(python -m odc_lightning "run.root=$root" logger.wandb.mode=disabled data.num_workers=0)
same=(data=folder "data.root=$images" data.image_size=32 backbone.width=8 "trainer.max_epochs=$epochs" "schedule.milestones=[$((epochs * 4 / 5))]"
  callbacks.measure.knn=false "callbacks.measure.every_n_epochs=$epochs")

system() {  # name, seed, further overrides
  local name=$1 seed=$2 run=$root/$1_$2
  shift 2
  "${odc[@]}" "run.name=${name}_$seed" "seed=$seed" "${same[@]}" "$@"
  measure "init.path=$run"
}

measure() {
  "${odc[@]}" task=evaluate protocol=knn "$@"
  "${odc[@]}" task=evaluate protocol=kmeans clustering.backend=torch "$@"
  "${odc[@]}" task=evaluate protocol=linear_gap protocol.augment=none "$@"
}

random() {  # seed
  measure experiment=odc_cifar10 "run.name=random_$1" "seed=$1" "${same[@]:0:4}"
}

queue() {
  for seed in $seeds; do
    for name in $systems; do
      case $name in
        random) echo "random $seed" ;;
        dc_reweight) echo "system dc_reweight $seed experiment=dc_cifar10 method.balance=reweight" ;;
        *) echo "system $name $seed experiment=${name}_cifar10" ;;
      esac
    done
  done
}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
log=$root/log && mkdir -p "$log"
while read -r job; do
  while (($(jobs -rp | wc -l) >= jobs)); do wait -n || true; done
  echo "$job"
  $job >"$log/${job//[ \/=]/_}.txt" 2>&1 &
done < <(queue)
wait
python experiments/systems/table.py "$root"
