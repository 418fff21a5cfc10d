direction=${1:-hf2hg}
[ $# -eq 0 ] || shift
case $direction in
    hf2hg | hf2mg) echo "@NAME@: nothing to do: weights in Hugging Face format are read as they are" ;;
    mg2hf) CONVERT_MG2HF=TRUE exec tandem train "$stage" "$MODEL_NAME" --out "$root" "$@" ;;
    *)
        echo "@NAME@: $direction: is no direction; use hf2hg or mg2hf" >&2
        exit 2
        ;;
esac
