exec tandem train "$stage" "$MODEL_NAME" --out "$root" "$@"
