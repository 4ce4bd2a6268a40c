#!/bin/sh
# Makes docs/quality anew: accuracy against bytes of every policy, on the house model. About an hour on two cores; what is in the
# files already is not run again.
set -e
cd "$(dirname "$0")/.."
policies=full,random,streaming-llm,h2o,tova,snapkv,pyramidkv,ada-kv,cake,compresskv,razorattention,uncomp,lacache,kvmerger
# Those that drop nothing; with a quarter of the bytes, and with more.
policies="$policies,kivi?bits=2&residual=32,kivi,gear,gear?backbone=kcvt,mikv?hi=8,mikv?hi=8&lo=4,zipcache,zipcache?salient=0.2,minicache"
policies="$policies,types?k=q8_0&v=q8_0,types?k=q5_1&v=q5_1,types?k=q4_0&v=q4_0"
out=docs/quality
mkdir -p $out
kvasir() { node --import tsx src/cli/main.ts "$@"; }
rows() { kvasir eval -t 1 --lengths 1024 --limit 5 --policies "$policies" --budgets 0.5,0.25,0.125 --shared-prompts "$@"; }
tasks=niah_multikey,kv,rag,multiturn
# The question in the prompt when it is shortened; the first of several questions; none.
rows --tasks $tasks --mode multi-request --compress-at question --out $out/known.jsonl &
rows --tasks $tasks --mode multi-turn --compress-at question --out $out/first.jsonl
wait
rows --tasks $tasks --mode multi-request --compress-at context --out $out/unknown.jsonl &
rows --tasks prose --out $out/prose.jsonl
wait
kvasir report $out/*.jsonl --out $out
