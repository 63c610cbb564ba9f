// The try-it page: reads a picture or the webcam, runs the network in onnxruntime-web, and draws the answer.
// `tools/docs.py` puts the network, what must be known about it, and onnxruntime-web beside this file.

const here = name => new URL(name, import.meta.url).href
const find = name => document.getElementById('ti-' + name)
const longSide = 640 // of the picture on the page, in pixels
const maxPixels = 16e6 // larger photos are reduced first: phones limit the size of a canvas

async function load() {
  const response = await fetch(here('model.json'))
  if (!response.ok) throw new Error('The network is missing: this copy of the site was built without npm.')
  const info = await response.json()
  const ort = await import(here('ort.wasm.bundle.min.mjs'))
  ort.env.wasm.numThreads = 1 // more need headers that static hosts do not send
  const session = await ort.InferenceSession.create(here('model.onnx'))
  find('scale').style.background = `linear-gradient(90deg, ${info.inferno.map(o => `rgb(${o})`).join()})`
  const net = {...info, ort, session}
  await predict(net, new Uint8Array(info.size**2 * 3), -1) // the first run takes longer
  return net
}

// Pillow's BILINEAR, with the same rounding, so that the network sees what it sees in Python
function triangles(n, size) {
  const scale = n / size, support = Math.max(scale, 1)
  return Array.from({length: size}, (_, i) => {
    const centre = (i + .5) * scale
    const first = Math.max(0, Math.trunc(centre - support + .5))
    const end = Math.min(n, Math.trunc(centre + support + .5))
    const weights = []
    for (let j = first; j < end; j++) weights.push(Math.max(0, 1 - Math.abs(j + .5 - centre) / support))
    const sum = weights.reduce((a, b) => a + b)
    return {first, weights: weights.map(o => Math.round(o / sum * 2**22) / 2**22)}
  })
}

// Resize one axis of `source`, which is seen as an array [outer, n, inner]
function resizeAxis(source, n, inner, size) {
  const outer = source.length / (n * inner)
  const res = new source.constructor(outer * size * inner)
  const half = source instanceof Uint8Array ? .5 : 0 // integers are rounded
  const targets = triangles(n, size)
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < size; i++) {
      const {first, weights} = targets[i]
      for (let c = 0; c < inner; c++) {
        let sum = half
        for (let j = 0; j < weights.length; j++) sum += weights[j] * source[(o * n + first + j) * inner + c]
        res[(o * size + i) * inner + c] = sum
      }
    }
  }
  return res
}

function resize(source, width, height, channels, newWidth, newHeight) {
  return resizeAxis(resizeAxis(source, width, channels, newWidth), height, newWidth * channels, newHeight)
}

// Draw a part of a bitmap or video over white
function toCanvas(source, x, y, width, height) {
  const scale = Math.min(1, Math.sqrt(maxPixels / (width * height)))
  const canvas = document.createElement('canvas')
  canvas.width = Math.max(1, Math.floor(width * scale))
  canvas.height = Math.max(1, Math.floor(height * scale))
  const context = canvas.getContext('2d', {willReadFrequently: true})
  context.fillStyle = 'white'
  context.fillRect(0, 0, canvas.width, canvas.height)
  context.drawImage(source, x, y, width, height, 0, 0, canvas.width, canvas.height)
  return canvas
}

// The pixels [size, size, 3] that the network takes
function toPixels(canvas, size) {
  const {width, height} = canvas
  const {data} = canvas.getContext('2d').getImageData(0, 0, width, height)
  const small = resize(new Uint8Array(data.buffer), width, height, 4, size, size)
  return small.filter((_, i) => i % 4 < 3)
}

async function predict({ort, session, size, threshold}, pixels, target) {
  const inputs = {pixels: new ort.Tensor('uint8', pixels, [1, size, size, 3]),
                  target: new ort.Tensor('int64', BigInt64Array.of(BigInt(target)), [1])}
  const start = performance.now()
  const {probabilities, energy, maps} = await session.run(inputs)
  const ms = performance.now() - start
  return {probabilities: [...probabilities.data], unlike: energy.data[0] < threshold, map: maps.data, ms}
}

// Draw the map over the picture, with the heat as opacity, and a contour at half of the maximum
function overlay(context, map, width, height, inferno) {
  const image = context.getImageData(0, 0, width, height)
  const clip = (value, end) => Math.min(Math.max(value, 0), end)
  const inside = (x, y) => map[clip(y, height - 1) * width + clip(x, width - 1)] >= .5
  for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) {
    const white = inside(x, y) // beside black, to be seen over any colour
    const edge = [inside(x - 2, y), inside(x + 2, y), inside(x, y - 2), inside(x, y + 2)].includes(!white)
    const colour = inferno[Math.round(255 * clip(map[i], 1))]
    for (let c = 0; c < 3; c++) {
      const under = image.data[4 * i + c]
      image.data[4 * i + c] = edge ? 255 * white : under + map[i] * (colour[c] - under)
    }
  }
  context.putImageData(image, 0, 0)
}

function drawPicture({canvas, map}, {size, inferno}) {
  const view = find('view'), scale = longSide / Math.max(canvas.width, canvas.height)
  view.width = Math.max(1, Math.round(canvas.width * scale))
  view.height = Math.max(1, Math.round(canvas.height * scale))
  const context = view.getContext('2d', {willReadFrequently: true})
  context.imageSmoothingEnabled = scale < 10 // the pixels of a tiny picture stay visible
  context.imageSmoothingQuality = 'high'
  context.drawImage(canvas, 0, 0, view.width, view.height)
  if (!find('heat').checked) return
  overlay(context, resize(map, size, size, 1, view.width, view.height), view.width, view.height, inferno)
}

const percent = o => (100 * o).toFixed(1) + ' %'

function drawBars({probabilities, unlike, target, ms}, {classes, name}) {
  const order = probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a])
  const mapped = target < 0 ? order[0] : target
  find('answer').classList.toggle('ti-unlike', unlike)
  const best = `${classes[order[0]]} ${percent(probabilities[order[0]])}`
  find('top').textContent = unlike ? 'Unlike the training images' : best
  find('why').hidden = !unlike
  find('bars').querySelectorAll('button').forEach((bar, i) => {
    const [label, length, value] = bar.children, k = order[i]
    label.textContent = classes[k]
    length.firstElementChild.style.width = `${100 * probabilities[k]}%`
    value.textContent = percent(probabilities[k])
    bar.dataset.target = k
    bar.setAttribute('aria-pressed', k === mapped)
  })
  find('view').setAttribute('aria-label', `The picture with the class activation map for ${classes[mapped]}`)
  find('page').dataset.probabilities = JSON.stringify(probabilities) // the bars show only three
  find('time').textContent = `${name} in int8: ${ms.toFixed(0)} ms in this browser. The map is for ${classes[mapped]}.`
}

let network, shown, stream
let last = Promise.resolve(), newest = 0 // pictures are answered one after the other

function queue(task) {
  stopWebcam()
  const mine = ++newest
  last = last.then(() => mine === newest && task()).catch(fail)
}

function fail(error) {
  find('error').textContent = error.message
  find('error').hidden = false
  find('loading').hidden = true
}

async function answer(canvas, target = -1) {
  const net = await network
  const pixels = toPixels(canvas, net.size)
  shown = {canvas, target, ...await predict(net, pixels, target)}
  drawPicture(shown, net)
  drawBars(shown, net)
  find('answer').hidden = false
  find('error').hidden = true
}

async function showFile(blob) {
  let bitmap
  try { bitmap = await createImageBitmap(blob, {colorSpaceConversion: 'none'}) }
  catch { throw new Error('The browser cannot read this file as an image. Choose a PNG, JPEG or WebP file.') }
  await answer(toCanvas(bitmap, 0, 0, bitmap.width, bitmap.height))
}

async function showSample(button) {
  const response = await fetch(button.querySelector('img').src)
  await showFile(await response.blob())
}

async function startWebcam() {
  let opened
  try { opened = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment', width: 640}}) }
  catch { throw new Error('No webcam: none is connected, or the browser denies its use. Allow it for this page.') }
  queue(() => watch(opened))
  stream = opened
  find('webcam').textContent = 'Stop the webcam'
  find('top').setAttribute('aria-live', 'off') // a screen reader would never stop
}

async function watch(opened) {
  const video = document.createElement('video')
  video.muted = video.playsInline = true
  video.srcObject = opened
  await video.play()
  while (stream === opened) {
    const {videoWidth: width, videoHeight: height} = video, side = Math.min(width, height)
    await answer(toCanvas(video, (width - side) / 2, (height - side) / 2, side, side))
    await new Promise(done => setTimeout(done, 100))
  }
}

function stopWebcam() {
  stream?.getTracks().forEach(o => o.stop())
  stream = undefined
  find('webcam').textContent = 'Use the webcam'
  find('top').setAttribute('aria-live', 'polite')
}

function listenToButtons() {
  const file = find('file')
  const each = (name, action) => {
    for (const o of find(name).querySelectorAll('button')) o.addEventListener('click', () => action(o))
  }
  file.addEventListener('change', () => {
    const chosen = file.files[0]
    if (chosen) queue(() => showFile(chosen))
    file.value = '' // the same file can be chosen again
  })
  find('webcam').addEventListener('click', () => stream ? stopWebcam() : startWebcam().catch(fail))
  each('samples', o => queue(() => showSample(o)))
  each('bars', o => queue(() => answer(shown.canvas, Number(o.dataset.target))))
  find('heat').addEventListener('change', async () => drawPicture(shown, await network))
}

function listenToFiles() {
  const mark = dragged => find('page').classList.toggle('ti-drop', dragged)
  document.addEventListener('dragover', o => {
    o.preventDefault()
    mark(true)
  })
  document.addEventListener('dragleave', o => { if (!o.relatedTarget) mark(false) })
  document.addEventListener('drop', o => {
    o.preventDefault()
    mark(false)
    const dropped = o.dataTransfer.files[0]
    if (dropped) queue(() => showFile(dropped))
  })
}

listenToButtons()
listenToFiles()
document.addEventListener('visibilitychange', () => { if (document.hidden) stopWebcam() })
network = load()
queue(async () => {
  await showSample(find('samples').querySelector('button'))
  find('loading').hidden = true
})
