// A part of a page that a module in browser/ draws: it mounts into this element, and is told when the element goes.
export default {
  template: '<div class="cp-view"></div>',
  props: { module: String, options: Object },
  async mounted() {
    const module = await import(this.module);
    if (!this.$el.isConnected) return;
    this.view = module.mount(this.$el, this.options ?? {}) ?? {};
    for (const [name, values] of this.waiting ?? []) this.view[name]?.(...values);
  },
  beforeUnmount() {
    this.view?.unmount?.();
  },
  methods: {
    // Calls a method of the view from the server.
    call(name, ...values) {
      if (this.view) return this.view[name]?.(...values);
      this.waiting = [...(this.waiting ?? []), [name, values]]; // the module is not there yet
    },
  },
};
