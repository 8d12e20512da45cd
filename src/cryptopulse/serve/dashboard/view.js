// A part of a page that a module in browser/ draws: the module is mounted into this element and unmounted with it.
export default {
  template: '<div class="cp-view"></div>',
  props: { module: String, options: Object },
  async mounted() {
    const module = await import(this.module);
    if (this.$el.isConnected) this.view = module.mount(this.$el, this.options ?? {});
  },
  beforeUnmount() {
    this.view?.unmount?.();
  },
};
