/** Zh.QA: the stories of qa_eng in Chinese, between Chinese sentences; scored by F1 over characters. */
import type { Draw } from '../draw.ts'
import { fill, scatter } from '../fill.ts'
import { peopleFor } from './english.ts'
import { defineScbenchTask, TURNS } from './frame.ts'
import { type Language, tellStory } from './stories.ts'

const words = (text: string): readonly string[] => text.trim().split(/\s+/)

const CHINESE: Language = {
  people: words('张伟 李娜 王芳 刘洋 陈静 杨帆 赵敏 黄磊 周杰 吴倩 徐丽 孙涛 马超 朱琳 胡军 郭靖 何苗 高峰 林枫 罗兰'),
  places: words('图书馆 厨房 港口 博物馆 面包店 剧院 医院 车站 学校 城堡 灯塔 果园'),
  things: words(
    '小提琴 望远镜 指南针 灯笼 字典 棋盘 喇叭 宝剑 项链 风筝 锤子 王冠 显微镜 沙漏 手鼓 马鞍 手风琴 奖章 顶针 磁铁',
  ),
  goes: ['{p}走到了{l}。', '{p}去了{l}。', '{p}来到{l}。'],
  owns: ['{p}总是带着{t}。', '{p}有一个{t}。'],
  where: '故事结束时{p}在哪里？',
  before: '{p}去{l}之前在哪里？',
  what: '{p}的东西是什么？',
  who: '谁有{t}？',
}

const SOMEONE = words('老人 邻居 船长 商人 牧人 学生 客人 渔夫 孩子 信使')
const QUALITY = words('破旧的 安静的 沉重的 狭窄的 普通的 潮湿的 灰色的 结实的')
const SOMETHING = words('桥 小路 窗帘 梯子 信 木桶 马车 镜子 毯子 篮子 长椅 大门')
const DID = words('看见了 修好了 忘记了 描述过 搬走了 卖掉了 提到了 检查了')
const WHEN = words('下雨以前 在那些日子里 傍晚时分 收割以后 漫长的冬天里 灯亮起之前')

/** Where little room is left: of 4 to 6 characters. */
const LEAST = words('天亮了。 风停了。 门关着。 雪化了。 火还亮着。 路上没有人。 屋里很静。 鸟都飞走了。')

/** Made up, as the English prose is, of words that no question is about. */
function sentence(r: Draw, room: number): string {
  if (room < 36) return r.pick(LEAST)
  const short = `${r.pick(SOMEONE)}${r.pick(DID)}${r.pick(SOMETHING)}。`
  return room < 60 ? short : `${r.pick(WHEN)}，${r.pick(SOMEONE)}${r.pick(DID)}${r.pick(QUALITY)}${r.pick(SOMETHING)}。`
}

export const qaChn = defineScbenchTask({
  name: 'scbench_qa_chn',
  capability: 'semantic retrieval',
  summary: 'questions about a Chinese story whose facts move',
  write({ r, length, count, roomFor }) {
    // A token of a small vocabulary is a third of a character: fewer people than in English.
    const story = tellStory(r, CHINESE, Math.max(2, Math.floor(peopleFor(length) / 2)))
    const render = (units: readonly string[]) => `请根据下面的故事简短地回答问题。\n\n${units.join('')}`
    const filler = fill(
      { length, count },
      { render: (more) => render([...story.sentences, ...more]), next: (room) => sentence(r, room) },
    )
    const turns = r.sample(story.questions, TURNS).map(
      ({ question, answer }) =>
        ({
          question: `问题：${question}\n回答：`,
          answers: [answer],
          reference: answer,
          metric: 'f1-characters',
          maxTokens: roomFor(answer),
        }) as const,
    )
    return { context: render(scatter(r, filler, story.sentences)), turns }
  },
})
