package ai.solrt.sample

import ai.solrt.SolException
import ai.solrt.SolGovernor
import ai.solrt.SolModel
import ai.solrt.SolRuntime
import ai.solrt.SolSession
import ai.solrt.generateFlow
import ai.solrt.generateOptions
import android.app.Activity
import android.os.Bundle
import android.widget.Button
import android.widget.CheckBox
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.SeekBar
import android.widget.TextView
import java.io.File
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.MainScope
import kotlinx.coroutines.cancel
import kotlinx.coroutines.delay
import kotlinx.coroutines.isActive
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/** A prompt, text that streams, and a slider that moves the budget meanwhile. The bundle lies in the app's external files folder, as `bundle`. */
class MainActivity : Activity() {
    private val scope = MainScope()
    private var model: SolModel? = null
    private var session: SolSession? = null
    private var running: Job? = null
    private var rate = Double.NaN
    private lateinit var prompt: EditText
    private lateinit var slider: SeekBar
    private lateinit var governed: CheckBox
    private lateinit var button: Button
    private lateinit var figures: TextView
    private lateinit var text: TextView

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        prompt = EditText(this).apply { setText("Once upon a time") }
        slider = SeekBar(this).apply { max = 100 }
        governed = CheckBox(this).apply { setText("Follow battery and heat") }
        button = Button(this).apply { setText("Load") }
        figures = TextView(this)
        text = TextView(this).apply { textSize = 18f }
        val column = LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            setPadding(32, 32, 32, 32)
            for (view in listOf(prompt, slider, governed, button, figures)) addView(view)
            addView(ScrollView(context).apply { addView(text) })
        }
        setContentView(column)
        slider.setOnSeekBarChangeListener(object : SeekBar.OnSeekBarChangeListener {
            override fun onProgressChanged(bar: SeekBar, progress: Int, fromUser: Boolean) = setBudget(budget())
            override fun onStartTrackingTouch(bar: SeekBar) {}
            override fun onStopTrackingTouch(bar: SeekBar) {}
        })
        slider.progress = 60
        button.setOnClickListener { if (running?.isActive == true) running?.cancel() else running = scope.launch { generate() } }
        scope.launch { govern() }
    }

    override fun onDestroy() {
        scope.cancel()
        session?.close()
        model?.close()
        super.onDestroy()
    }

    private fun budget() = slider.progress / 100.0

    private fun setBudget(budget: Double) {
        try {
            session?.setBudget(budget)
        } catch (_: SolException.Usage) {
            // nothing is generating: the next generation begins with the slider's budget
        }
    }

    private suspend fun generate() {
        try {
            button.text = "Stop"
            val loaded = model ?: load().also { model = it }
            val active = session ?: loaded.newSession().also { session = it }
            val tokens = withContext(Dispatchers.Default) { loaded.encode(prompt.text.toString()) }
            text.text = prompt.text
            active.generateFlow(tokens, generateOptions { budget(budget()).maxNewTokens(300) }).collect { token ->
                rate = 1000 / token.milliseconds
                text.append(token.text)
                figures.text = "budget %.2f of %.2f, %.1f tokens a second, %s".format(token.achievedBudget, token.requestedBudget, rate, token.action)
            }
        } catch (stopped: CancellationException) {
            throw stopped
        } catch (error: SolException) {
            figures.text = error.message
        } finally {
            rate = Double.NaN
            button.text = "Generate"
        }
    }

    private suspend fun load(): SolModel = withContext(Dispatchers.IO) {
        val folder = File(getExternalFilesDir(null), "bundle").path
        val options = SolModel.Options().apply { costsFolder = File(filesDir, "costs").path }
        SolRuntime.open(SolRuntime.Options().apply { spin = false }).use { runtime -> SolModel.load(runtime, folder, options) }
    }

    /** Every two seconds: device to governor to budget. */
    private suspend fun govern() {
        val device = DeviceState(this)
        var governor = SolGovernor(0.3, 1.0, Double.NaN)
        while (scope.isActive) {
            delay(2000)
            if (!governed.isChecked) governor = SolGovernor(0.3, 1.0, Double.NaN)
            else slider.progress = (100 * governor.step(device.level, device.charging, device.thermal, rate)).toInt()
        }
    }
}
