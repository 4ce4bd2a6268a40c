#!/bin/sh
# Makes docs/quality anew: accuracy against bytes of every policy, on the house model. About half an hour on two cores; what is
# in the files already is not run again.
set -e
cd "$(dirname "$0")/.."
policies=full,random,streaming-llm,h2o,tova,snapkv,pyramidkv,ada-kv,cake,compresskv,razorattention,uncomp,lacache
out=docs/quality
mkdir -p $out
kvasir() { node --import tsx src/cli/main.ts "$@"; }
rows() { kvasir eval -t 1 --lengths 1024 --limit 5 --policies $policies --budgets 0.5,0.25,0.125 --shared-prompts "$@"; }
tasks=niah_multikey,kv,rag,multiturn
# The question in the prompt when it is shortened; the first of several questions; none.
rows --tasks $tasks --mode multi-request --compress-at question --out $out/known.jsonl &
rows --tasks $tasks --mode multi-turn --compress-at question --out $out/first.jsonl
wait
rows --tasks $tasks --mode multi-request --compress-at context --out $out/unknown.jsonl &
rows --tasks prose --out $out/prose.jsonl
wait
kvasir report $out/*.jsonl --out $out
