// A file that the browser cannot show, such as a TIFF, leaves the box empty instead of showing a broken icon
document.addEventListener('error', e => e.target.classList?.add('cf-broken'), true)
document.addEventListener('load', e => e.target.classList?.remove('cf-broken'), true)
// Gradio reopens the list of a dropdown that Tab has left
document.addEventListener('keydown', e => {
  if (e.key == 'Tab' && e.target.getAttribute('role') == 'combobox') e.stopPropagation()
}, true)
// Gradio warns at the end of each upload
const warn = console.warn
console.warn = (...args) => { if (args[0] != 'Method not implemented.') warn(...args) }
