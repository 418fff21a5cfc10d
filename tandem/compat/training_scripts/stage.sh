
if [ -z "${MODEL_NAME:-}" ]; then
    echo "@NAME@: MODEL_NAME is not set; set it, such as MODEL_NAME=llama2-13b, or run 0_pl_*.sh" >&2
    exit 2
fi
case ${RUN_TYPE:-}${STAGE:-}${FINETUNING_TYPE:-} in
    *lora*) stage=lora ;;
    *sft*) stage=sft ;;
    *) stage=pretrain ;;
esac
