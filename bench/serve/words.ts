/**
 * Words to make prompts of. Common English ones: in most vocabularies each of them, with the space before it, is one token
 * wherever it stands, because tokenizers split text at spaces first. So a prompt of n such words is n tokens, and a block of
 * words is the same tokens in every prompt. Which of them a server's tokenizer knows as one token, it is asked.
 */
export const WORDS: readonly string[] = (
  'the of and to in is was for on that with as it by he his at from are this be an or which had not but have her were ' +
  'one all she they there been has their when who more will no if out so up said what its about into than them can only ' +
  'other time new some could these two may first then do any like my now over such our man me even most made after also ' +
  'did many before must through years where much your way well down should because each just those people how too little ' +
  'state good very make world still own see men work long get here between both life being under never day same another ' +
  'know while last might us great old year off come since against go came right used take three states himself few house ' +
  'use during without again place around however home small found thought went say part once general high upon school ' +
  'every does got united left number course war until always away something fact water though less public put think ' +
  'almost hand enough far took head yet government system better set told nothing night end why called eyes find going ' +
  'look asked later knew point next program city business give group toward young days let room within side given want ' +
  'present order name often among large church mother father real children case early white set power problem country ' +
  'line form best door money light field story car street book land king words black heart song boy girl friend tree sun'
)
  .split(' ')
  .filter((word, i, all) => all.indexOf(word) === i)
