case ${1--} in
    -*) ;;
    *)
        if [ $# -lt 3 ]; then
            echo "@NAME@: give all three of MASTER_ADDR NNODES NODE_RANK, or none" >&2
            exit 2
        fi
        export MASTER_ADDR="$1" NNODES="$2" NODE_RANK="$3"
        shift 3
        ;;
esac
